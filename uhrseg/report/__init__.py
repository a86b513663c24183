"""Pictures for people: quicklooks and curves. Numpy and matplotlib; neither engine nor torch."""

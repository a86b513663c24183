"""``python -m uhrseg``, and ``torchrun -m uhrseg train``."""

from uhrseg.cli.main import app

if __name__ == "__main__":
    app(prog_name="uhrseg")

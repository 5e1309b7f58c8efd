"""Entry point of `make app` and of a Hugging Face Space."""

from opd.ui import launch

if __name__ == "__main__":
    launch()

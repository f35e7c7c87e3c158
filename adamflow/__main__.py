"""`python -m adamflow`: the command line."""

from adamflow.command_line import app

if __name__ == "__main__":
    app(prog_name="adamflow")

"""Answer questions to a finished audit on a page and over HTTP: `python -m jobs.serve store=results audit=demo`."""

from jobs.configure import main
from serving.listen import ServeConfig, listen

if __name__ == "__main__":
    main(listen, "serve", ServeConfig)

"""Answer questions to a finished audit on a page and over HTTP: `python -m jobs.serve store=results audit=demo`.

One process keeps the model and answers one question after another, as `jobs.ask` does; with replicas=N, Ray Serve runs
one process with the model and N with a share of the features each. Ctrl-C ends it.
"""

from collections.abc import Mapping
from typing import Any

from jobs.configure import CONF, NOT_SHIPPED, main
from serving.listen import ServeConfig, listen
from serving.replicas import serve_plan


def serve(config: ServeConfig) -> int:
    """Answer until the process is ended. Ray is imported only if there are replicas."""
    if not config.replicas:
        return listen(config)
    from cluster.on_serve import serve_until_ended

    return serve_until_ended(serve_plan(config), str(CONF.parent), NOT_SHIPPED)


def application(args: Mapping[str, Any]) -> Any:
    """The same for a configuration file of Ray Serve, whose `args` are the keys of this verb."""
    from cluster.on_serve import deployments

    return deployments(serve_plan(args))


if __name__ == "__main__":
    main(serve, "serve", ServeConfig)

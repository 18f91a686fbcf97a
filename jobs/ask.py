"""Ask a finished audit: `python -m jobs.ask store=results audit=demo prompt="a red triangle" without="a triangle"`.

Its features answer a concept that it was not run for, with the scores that an audit with this concept has. It takes the
gradients of one query and one pass over the features, in this process. `out=FOLDER` writes a table and a page.
"""

from concept_trak.report.publish_answer import AskConfig, answer_question
from jobs.configure import main


def ask(config: AskConfig) -> int:
    """Print the answer, and write it with `out`."""
    for line in answer_question(config):
        print(line)
    return 0


if __name__ == "__main__":
    main(ask, "ask", AskConfig)

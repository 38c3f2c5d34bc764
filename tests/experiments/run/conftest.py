"""A work folder and processes, for the tests of what a run needs to survive."""

import pytest

from experiments.run import workdirs
from tests.experiments.run import toy_run
from tests.experiments.run.toy_run import FORKS, Child, Config


@pytest.fixture
def workdir(tmp_path):
    """An open work folder."""
    with workdirs.Workdir(tmp_path / "run", Config()) as opened:
        yield opened


@pytest.fixture
def fork(tmp_path):
    """Starts children: fork(function, arguments...)(messages) and kills those that are left."""
    children = []

    def start(target, *arguments):
        receiver, sender = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=toy_run.begin, args=(target, tmp_path, (sender, *arguments)))
        process.start()
        sender.close()
        children.append(Child(process, receiver, tmp_path))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.join()
        child.messages.close()

import logging
import sys

import jax

from tubevit.cli.logs import install_logging, logging_installed

logger = logging.getLogger("tubevit.training.loop")


def test_plain_lines_on_stderr(capsys):
    with logging_installed():
        logger.info("step 1")
        logger.debug("details")
        with logging_installed():
            logger.warning("step 2")
        logger.info("step 3")
    logger.info("step 4")
    assert capsys.readouterr().err == "step 1\nstep 2\nstep 3\n"


def test_all_is_put_back():
    package = logging.getLogger("tubevit")
    before = package.handlers[:], package.level, package.propagate
    with logging_installed():
        install_logging()
        assert len(package.handlers) == len(before[0]) + 1 and package.level == logging.INFO
    assert (package.handlers, package.level, package.propagate) == before


def test_of_several_processes_one_logs(monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with logging_installed():
        logger.info("step 1")
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        logger.info("step 1")
        logger.warning("a broken file", extra={"every_process": True})
        monkeypatch.delitem(sys.modules, "jax")  # a verb that needs none
        logger.info("alone")
    assert capsys.readouterr().err == "step 1\na broken file\nalone\n"

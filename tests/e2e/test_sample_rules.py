"""The sample rules files: good for `validate` and for editors, and answered as their comments say."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from limiter_node.control.rules_file import Reading
from limiter_node.core.schema import rules_file_schema
from tests.harness import ROOT, NodeProcess, request

SAMPLES = sorted((ROOT / "compose" / "rules").glob("*.yaml"))
CURL = re.compile(r"^ *# +curl 'http://127\.0\.0\.1:8080(/\S+)' +(\{.*\})$", re.MULTILINE)


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 4


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_good_for_validate_and_for_editors(path: Path) -> None:
    reading = Reading(path)
    reading.check()
    document: dict[str, dict[str, object]] = {}
    for key, value in reading.documents.items():
        section, _, name = key.partition("/")
        document.setdefault(section, {})[name] = value
    errors = jsonschema.Draft7Validator(rules_file_schema()).iter_errors(document)
    assert [error.message for error in errors] == []
    assert path.read_text().startswith("# yaml-language-server: $schema=rules.schema.json\n")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_answers_as_its_comments_say(path: Path) -> None:
    curls = CURL.findall(path.read_text())
    assert len(curls) == path.read_text().count("curl")
    with NodeProcess(rules=path) as node:
        for target, told in curls:
            answer = request(node.http, "GET", target).body
            assert {**answer, **json.loads(told)} == answer, target

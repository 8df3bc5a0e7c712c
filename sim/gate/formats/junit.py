"""A check's report as JUnit XML: a suite for all cases, and a test for each metric of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as tree

from ....traces.files.escaping import for_xml
from .words import budget, details, name, sentence


def junit(report: Mapping[str, Any]) -> str:
    """The document. Tests are called by their metric, in a class called by the case."""
    suite = tree.Element("testsuite", name="tokencake check", time=f"{report['wall_s']:.3f}")
    for case in report["cases"]:
        _case(suite, case, report["strict"])
    check = _test(suite, "check", "budget")
    if over := budget(report):
        _problem(check, "failure", over, over)
    counts = {
        "tests": len(suite),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": 0,
    }
    root = tree.Element("testsuites")
    root.append(suite)
    for element in (root, suite):
        element.attrib.update({name: str(count) for name, count in counts.items()})
    tree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tree.tostring(root, encoding="unicode")}\n'


def _case(suite: tree.Element, case: Mapping[str, Any], strict: bool) -> None:
    said = "\n".join(details(case))
    if case["error"] is not None:
        _problem(_test(suite, case["name"], "run"), "error", case["error"], said)
        return
    behaviour = _test(suite, case["name"], "behaviour")
    if said:
        tree.SubElement(behaviour, "system-out").text = for_xml(said)
    if strict and case["behaviour"] != "same":
        _problem(behaviour, "failure", f"{case['name']} behaves otherwise", said)
    for one in case["metrics"]:
        test = _test(suite, case["name"], name(one))
        if one["verdict"] == "regressed" or (strict and one["verdict"] != "good"):
            _problem(test, "failure", sentence(one), "\n".join(part for part in (sentence(one), said) if part))
        elif one["verdict"] != "good":
            tree.SubElement(test, "system-out").text = for_xml(sentence(one))


def _test(suite: tree.Element, case: str, name: str) -> tree.Element:
    return tree.SubElement(suite, "testcase", classname=for_xml(f"tokencake.{case}"), name=for_xml(name), time="0")


def _problem(test: tree.Element, kind: str, message: str, text: str) -> None:
    line = for_xml(message)
    tree.SubElement(test, kind, message=line, type=f"tokencake.{kind}").text = for_xml(text)

"""The demo's scripts: a developer mends a bug, a reviewer reads the change, a tester adds tests.

Each step goes by what the tools gave back: the bug is found in the file's text, not known; tests that still fail are
reported as failing; a file that is missing ends the work with words that say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts.steps import Say, Step, Use

TESTS = "python3 -m unittest discover -s tests -t ."
MODULE = "orders/totals.py"
NEW_TESTS = "tests/test_totals_edges.py"

WITH_TAX = '''def with_tax(amount: float, rate: float) -> float:
    """Return the amount with tax; `rate` is a fraction from 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"expected a rate from 0 to 1, got {rate}")
    return round(amount * (1 + rate), 2)


'''


def script_for(talk: Conversation) -> Callable[[Conversation], Step] | None:
    """Return the script for an order of the demo, None for any other."""
    for marker, script in (("with_tax", develop), ("Review the last commit", review), ("Write more tests", test)):
        if marker in talk.order and MODULE in talk.order:
            return script
    return None


def develop(talk: Conversation) -> Step:
    """Run the tests, read, mend what is wrong in what was read, add the function, run the tests again, commit."""
    first = talk.call(0)
    if first is None:
        return Use(0, "Bash", {"command": TESTS, "description": "Run the tests"}, "I run the tests first.")
    read = talk.call(1)
    if read is None:
        failing = ", ".join(re.findall(r"^(?:FAIL|ERROR): (\w+)", first.text, re.M)) or "nothing"
        return Use(1, "Read", {"file_path": MODULE}, f"Failing: {failing}. I read {MODULE}.")
    if read.failed:
        return Say(f"I cannot do this: {MODULE} cannot be read: {read.text.strip()[:300]}")
    bug = re.search(r"(\w[\w. ]*) \* \(1 \+ discount\)", read.text)
    if bug and talk.call(2) is None:
        right = bug[0].replace("1 + discount", "1 - discount")
        edit = {"file_path": MODULE, "old_string": bug[0], "new_string": right}
        return Use(2, "Edit", edit, "A discount is added where it must be taken off; I mend that line.")
    if "def with_tax" not in read.text and talk.call(3) is None:
        anchor = "def total("
        if anchor not in read.text:
            return Say(f"I cannot add with_tax: {MODULE} has no function total to put it before.")
        edit = {"file_path": MODULE, "old_string": anchor, "new_string": WITH_TAX + anchor}
        return Use(3, "Edit", edit, "Now the new function.")
    again = talk.call(4)
    if again is None:
        return Use(4, "Bash", {"command": TESTS, "description": "Run the tests again"}, "The tests again.")
    if again.failed or "OK" not in again.text:
        return Say(f"The tests still fail after my change, so I do not commit it:\n{again.text.strip()[-600:]}")
    commit = talk.call(5)
    if commit is None:
        command = f"git add {MODULE} && git commit -q -m 'Take discounts off; add with_tax' && git log -1 --stat"
        return Use(5, "Bash", {"command": command, "description": "Commit"}, "All tests pass; I commit.")
    before = "failed" if "FAILED" in first.text else "passed"
    done = ["the discount is taken off and no longer added"] if bug else ["there was no bug left to mend"]
    done.append("with_tax was there already" if "def with_tax" in read.text else "with_tax is new")
    ran = re.search(r"Ran \d+ tests?", again.text)
    committed = "not committed: " + commit.text.strip()[:200] if commit.failed else "committed"
    return Say(
        f"{MODULE}: {'; '.join(done)}. The tests {before} before; now: {ran[0] if ran else 'they ran'}, all passed; "
        f"{committed}.{_remarks(talk)}"
    )


def review(talk: Conversation) -> Step:
    """Look at the history and the last change, read the file, say what was found in it."""
    log = talk.call(0)
    if log is None:
        return Use(
            0, "Bash", {"command": "git log --oneline -5", "description": "See the history"}, "The history first."
        )
    diff = talk.call(1)
    if diff is None:
        return Use(1, "Bash", {"command": "git show --format=%s HEAD", "description": "See the change"})
    if diff.failed:
        return Say(f"I cannot review: {diff.text.strip()[:300]}")
    changed = re.findall(r"^\+\+\+ b/(\S+)", diff.text, re.M)
    if not changed:
        return Say(f"The last commit changes no file; there is nothing to review.{_remarks(talk)}")
    read = talk.call(2)
    if read is None:
        return Use(2, "Read", {"file_path": changed[0]}, f"I read {changed[0]} as it is now.")
    added = len(re.findall(r"^\+(?!\+\+)", diff.text, re.M))
    removed = len(re.findall(r"^-(?!--)", diff.text, re.M))
    found = [f"{', '.join(changed)}: {added} lines added, {removed} removed."]
    if "1 - discount" in read.text:
        found.append("The discount is taken off, as it should be.")
    if "1 + discount" in read.text:
        found.append("Must fix: the discount is added to the price.")
    for name in re.findall(r"^\+def (\w+)", diff.text, re.M):
        body = read.text.split(f"def {name}", 1)[-1]
        checked = "raise ValueError" in body.split("\ndef ", 1)[0]
        found.append(f"{name}: {'bad input is refused' if checked else 'should refuse bad input'}.")
        if not any(path.startswith("tests/") for path in changed):
            found.append(f"{name} has no test in this commit; please add some.")
    return Say("Review\n- " + "\n- ".join(found) + _remarks(talk))


def test(talk: Conversation) -> Step:
    """Read the module, write tests for the functions it has, run all tests, report the count that was seen."""
    read = talk.call(0)
    if read is None:
        return Use(0, "Read", {"file_path": MODULE}, "I read what is to be tested.")
    if read.failed:
        return Say(f"There is nothing to test: {read.text.strip()[:300]}")
    functions = re.findall(r"def (\w+)\(", read.text)
    if talk.call(1) is None:
        return Use(
            1, "Write", {"file_path": NEW_TESTS, "content": _tests_for(functions)}, "I write tests of the edges."
        )
    ran = talk.call(2)
    if ran is None:
        return Use(2, "Bash", {"command": TESTS, "description": "Run all tests"})
    count = re.search(r"Ran (\d+) tests?", ran.text)
    verdict = "all passed" if "OK" in ran.text and not ran.failed else f"some failed:\n{ran.text.strip()[-600:]}"
    names = ", ".join(name for name in functions if name in EDGES) or "nothing I know"
    return Say(
        f"Tests of {names} are in {NEW_TESTS}. {count[0] if count else 'The tests ran'}: {verdict}.{_remarks(talk)}"
    )


EDGES = {
    "total": """    def test_no_items_cost_nothing(self) -> None:
        self.assertEqual(totals.total([]), 0)

    def test_a_full_discount_leaves_nothing(self) -> None:
        self.assertEqual(totals.total([(10.0, 2)], discount=1.0), 0)
""",
    "with_tax": """    def test_no_tax_changes_nothing(self) -> None:
        self.assertEqual(totals.with_tax(10.0, 0.0), 10.0)

    def test_a_tax_below_zero_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            totals.with_tax(10.0, -0.1)
""",
}


def _tests_for(functions: list[str]) -> str:
    known = [EDGES[name] for name in functions if name in EDGES]
    body = "\n".join(known) or "    def test_the_module_is_there(self) -> None:\n        self.assertTrue(totals)\n"
    return f"import unittest\n\nfrom orders import totals\n\n\nclass TotalsEdges(unittest.TestCase):\n{body}"


def _remarks(talk: Conversation) -> str:
    return f" You said: {'; '.join(talk.remarks)[:400]}." if talk.remarks else ""

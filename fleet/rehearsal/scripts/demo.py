"""The scripts of the demo: a developer mends and extends, a reviewer reviews, a tester tests.

They know a few kinds of mistakes, as a reader would, and look for them in what the tools show; they know neither the
repository nor what came before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fleet.rehearsal.conversation import Conversation
from fleet.rehearsal.scripts.progress import Progress, plain
from fleet.rehearsal.scripts.steps import Say

TEST_COMMAND = "python3 -m unittest discover -s tests -t ."
PYTHON_FILE = re.compile(r"[\w./-]+\.py\b")
FAILED_TEST = re.compile(r"^(?:FAIL|ERROR): (\w+) \(([\w.]+)\)", re.M)
RAN = re.compile(r"^Ran (\d+) tests?", re.M)

MISTAKES = (
    (
        re.compile(r"\* \(1 \+ discount\)"),
        "* (1 - discount)",
        "a discount is taken off, not added",
    ),
    (
        re.compile(r"(?<=start = )number \* size\b"),
        "(number - 1) * size",
        "the first page has number 1",
    ),
)
"""What a mistake looks like, how it should be, and why."""

WITH_TAX = '''def with_tax(amount: float, rate: float) -> float:
    """Return the amount with tax; `rate` is a fraction from 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"expected a rate from 0 to 1, got {rate}")
    return round(amount * (1 + rate), 2)


'''

FUNCTIONS = {"with_tax": WITH_TAX}
"""Functions it can write: name → text."""

Script = Callable[[Conversation], Say]


def script_for(talk: Conversation) -> Script | None:
    """Return the script for an order, None when no script knows what to do."""
    order = talk.order.lower()
    if "review" in order and "Bash" in talk.tools:
        return reviewer
    if re.search(r"\b(fix|bug|mend|repair)", order) and {"Bash", "Read", "Edit"} <= talk.tools:
        return developer
    if re.search(r"\btests?\b", order) and {"Bash", "Read", "Write"} <= talk.tools:
        return tester
    return None


def developer(talk: Conversation) -> Say:
    """Run the tests, find the mistake in the module that fails, mend it, add what is asked for, test again, commit."""
    do = Progress(talk)
    before = do.bash(0, TEST_COMMAND, "I run the tests first, to see what fails.")
    failing = FAILED_TEST.findall(before.text)
    path = _module(talk, failing)
    if path is None:
        return Say(f"The tests say: {_verdict(before.text)}. No module was named and none fails, so I changed nothing.")
    said = f"{len(failing)} failed ({', '.join(name for name, _ in failing[:3])})" if failing else _verdict(before.text)
    read = do.read(1, path, f"The tests: {said}. I read {path}.")
    if read.failed:
        return Say(f"I could not read {path}: {read.text.strip()[:300]}\nThe tests: {said}. I changed nothing.")
    source = plain(read.text)
    report = [f"The tests at the start: {said}."]
    changed = False
    for pattern, good, why in MISTAKES:
        if pattern.search(source) is None:
            continue
        line = next(line for line in source.splitlines() if pattern.search(line))
        new = pattern.sub(good, line, count=1)
        made = do.edit(2, path, line, new, f"I found it: {why}.")
        if made.failed:
            return Say(f"I could not change {path}: {made.text.strip()[:300]}")
        changed = True
        report.append(f"Fixed {path}: `{line.strip()}` became `{new.strip()}`, because {why}.")
        break
    else:
        report.append(f"I found no mistake that I know in {path} ({len(source.splitlines())} lines).")
    for name, text in FUNCTIONS.items():
        if name not in talk.order:
            continue
        if f"def {name}" in source:
            report.append(f"{name} is there already.")
            continue
        anchor = next((line for line in source.splitlines() if line.startswith("def ")), None)
        if anchor is None:
            report.append(f"{name} could not be added: {path} has no function to put it before.")
            continue
        added = do.edit(3, path, anchor, text + anchor, f"I add {name}, which was asked for.")
        changed = changed or not added.failed
        failure = f"{name} could not be added: {added.text.strip()[:200]}"
        report.append(failure if added.failed else f"Added {name} to {path}.")
    if not changed:
        return Say("\n".join(report))
    after = do.bash(4, TEST_COMMAND, "I run the tests again.")
    report.append(f"The tests now: {_verdict(after.text)}.")
    if FAILED_TEST.search(after.text) or after.failed:
        names = ", ".join(name for name, _ in FAILED_TEST.findall(after.text))
        return Say("\n".join([*report, f"It is not done: {names or 'the tests'} still fail. I left it uncommitted."]))
    subject = f"Mend {path}" + "".join(f", add {name}" for name in FUNCTIONS if name in talk.order)
    command = f"git add -A && git commit -q -m '{subject}'; git log -1 --format='%h %s'"
    commit = do.bash(5, command, "They pass: I commit.")
    report.append(f"Committed: {commit.text.strip()[:100]}." if not commit.failed else f"Not committed: {commit.text}")
    return Say("\n".join(report))


def reviewer(talk: Conversation) -> Say:
    """Look at the last commits and the last change, read the file it changed most, and say what is found."""
    do = Progress(talk)
    log = do.bash(0, "git log --oneline -10", "I look at the last commits.")
    if log.failed or "fatal:" in log.text:
        return Say(f"I could not review: {log.text.strip()[:300]}")
    commits = [line for line in log.text.splitlines() if re.match(r"^[0-9a-f]{7,} ", line)]
    diff = do.bash(1, "git show --format='%h %s' HEAD", "I look at the last change.")
    files = re.findall(r"^\+\+\+ b/(\S+)", diff.text, re.M)
    added = re.findall(r"^\+(?!\+\+)(.*)$", diff.text, re.M)
    removed = re.findall(r"^-(?!--)(.*)$", diff.text, re.M)
    newest = commits[0] if commits else "nothing"
    report = [
        f"{len(commits)} commits; the last one is {newest}. It changes {len(files)} file(s) "
        f"({', '.join(files[:5]) or 'none'}): {len(added)} lines added, {len(removed)} removed."
    ]
    target = next((name for name in files if name.endswith(".py") and "test" not in name), None)
    named = PYTHON_FILE.search(talk.order)
    if target is None and named is not None:
        target = named[0]
    if target is None:
        return Say("\n".join([*report, "There is no Python code in it, so there is nothing more to review."]))
    read = do.read(2, target, f"I read {target} as a whole.")
    if read.failed:
        return Say("\n".join([*report, f"I could not read {target}: {read.text.strip()[:200]}"]))
    findings = _findings(target, plain(read.text), added, files)
    report += [f"{number}. {text}" for number, text in enumerate(findings, start=1)] or ["I found nothing to change."]
    blocking = any("a mistake:" in text for text in findings)
    report.append("Verdict: changes wanted." if blocking else "Verdict: good to go, with the remarks above.")
    return Say("\n".join(report))


def tester(talk: Conversation) -> Say:
    """Read the module, write tests of its edges for the functions it has, run all tests, report the counts."""
    do = Progress(talk)
    named = next((name for name in PYTHON_FILE.findall(talk.order) if not name.startswith("tests/")), None)
    if named is None:
        ran = do.bash(0, TEST_COMMAND, "No module was named: I run the tests there are.")
        return Say(f"I ran the tests there are: {_verdict(ran.text)}.")
    read = do.read(0, named, f"I read {named} to see what there is to test.")
    if read.failed:
        return Say(f"I could not test {named}: {read.text.strip()[:300]}")
    source = plain(read.text)
    functions = re.findall(r"^def (\w+)\(", source, re.M)
    module = named.removesuffix(".py").replace("/", ".").strip(".")
    known = [name for name in functions if name in EDGES]
    if not known:
        return Say(f"{named} has {', '.join(functions) or 'no functions'}; I know no edge cases for these.")
    path = f"tests/test_{module.rpartition('.')[2]}_edges.py"
    written = do.write(1, path, _tests(module, known), f"I write tests for {', '.join(known)}.")
    if written.failed:
        return Say(f"I could not write {path}: {written.text.strip()[:300]}")
    ran = do.bash(2, TEST_COMMAND, "I run all tests.")
    cases = sum(len(EDGES[name]) for name in known)
    report = [f"I wrote {path} with {cases} tests of {', '.join(known)}.", f"All tests: {_verdict(ran.text)}."]
    if missing := [name for name in functions if name not in EDGES]:
        report.append(f"Not covered by new tests: {', '.join(missing)}.")
    if failing := FAILED_TEST.findall(ran.text):
        report.append("Failing: " + ", ".join(name for name, _ in failing) + ".")
    return Say("\n".join(report))


EDGES: dict[str, tuple[tuple[str, str], ...]] = {
    "total": (
        ("no_items_cost_nothing", "self.assertEqual(total([]), 0)"),
        ("a_full_discount_leaves_nothing", "self.assertEqual(total([(10.0, 2)], discount=1.0), 0)"),
        ("half_a_discount_is_half_the_price", "self.assertEqual(total([(10.0, 2)], discount=0.5), 10.0)"),
    ),
    "with_tax": (
        ("no_tax_changes_nothing", "self.assertEqual(with_tax(10.0, 0.0), 10.0)"),
        ("a_tax_below_zero_is_refused", "self.assertRaises(ValueError, with_tax, 10.0, -0.1)"),
    ),
}
"""Function → names and bodies of tests of its edges."""


def _tests(module: str, functions: list[str]) -> str:
    lines = [
        f'"""Edge cases of {module}."""',
        "",
        "import unittest",
        "",
        f"from {module} import {', '.join(sorted(functions))}",
        "",
        "",
        "class EdgeTest(unittest.TestCase):",
    ]
    for name in functions:
        for title, body in EDGES[name]:
            lines += [f"    def test_{name}_{title}(self):", f"        {body}", ""]
    return "\n".join([*lines, "", 'if __name__ == "__main__":', "    unittest.main()", ""])


def _module(talk: Conversation, failing: list[tuple[str, str]]) -> str | None:
    """Return the module to look at: the one whose tests fail, as far as the order's files allow, else one it names."""
    named: list[str] = [name for name in PYTHON_FILE.findall(talk.order) if not name.startswith("tests/")]
    for _, where in failing:
        word = next((part.removeprefix("test_") for part in where.split(".") if part.startswith("test_")), None)
        if word is None:
            continue
        if found := next((name for name in named if name.endswith(f"{word}.py")), None):
            return found
        if not named and (package := re.search(r"\b(\w+)/", talk.order)):
            return f"{package[1]}/{word}.py"
    return named[0] if named else None


def _verdict(text: str) -> str:
    ran = RAN.search(text)
    if ran is None:
        return f"they did not run ({text.strip().splitlines()[-1][:120] if text.strip() else 'no output'})"
    failed = len(FAILED_TEST.findall(text))
    return f"{ran[1]} run, {failed} failed" if failed else f"{ran[1]} run, all passed"


def _findings(path: str, source: str, added: list[str], files: list[str]) -> list[str]:
    """Return what a reader would remark on a module."""
    found = []
    for pattern, _, why in MISTAKES:
        if match := pattern.search(source):
            found.append(f"{path}:{source[: match.start()].count(chr(10)) + 1}: a mistake: {why}.")
    for row, line in enumerate(source.splitlines(), start=1):
        if re.match(r"\s*except\s*:", line):
            found.append(f"{path}:{row}: a bare except hides every error.")
        if "TODO" in line:
            found.append(f"{path}:{row}: a TODO is left.")
        if re.search(r"// size\b|/ size\b", line):
            found.append(f"{path}:{row}: size = 0 raises ZeroDivisionError; a check with a clear message would help.")
    for function in re.finditer(r'^def (\w+)\(.*\).*:\n(?!\s+""")', source, re.M):
        found.append(f"{path}: {function[1]} has no docstring.")
    new = [name for line in added for name in re.findall(r"^def (\w+)", line)]
    for name in new:
        body = source.split(f"def {name}", 1)[-1].split("\ndef ", 1)[0]
        found.append(f"{name}: {'bad input is refused.' if 'raise ' in body else 'should refuse bad input.'}")
    if new and not any("test" in name for name in files):
        found.append(f"{', '.join(new)} is new and the change has no test of it.")
    return found

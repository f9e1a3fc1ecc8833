"""The report of a span of time: what ran, what failed and why, what it cost. Pure, over SQL of the documented views.

`build` asks the questions and makes a `Report`, `render` shows it as text, HTML or JSON. Imported by the CLI.
"""

"""What happened, in numbers and in lines. Pure.

`page` (the shared counters), `totals` (read by name), `histogram`; `record` (what an access line tells, and its JSON),
`plain` (the same line for what went well, at the cost of one f-string), `line` (text that is always one valid JSON
line), `journal` (events).
"""

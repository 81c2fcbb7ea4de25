"""The studies behind the numbers of the course: one module a question, rows in `data/results/`.

Nothing here is needed to follow the course. `python -m experiments` lists the studies and what they lack;
`python -m experiments NAME` runs what is missing.
"""

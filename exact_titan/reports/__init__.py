"""Reports: tables and figures for people, of packed datasets and of runs.

- ``exposure``: the targets of a split per bucket of effective context, with their weights and their loss mass.
- ``policies``: the windows that each packing policy would make of the same documents.
- ``window``: the documents of one window as text.
- ``runs``: the last common validation of several runs side by side.
- ``figures``: the bar figure of all reports. matplotlib is imported when a figure is drawn.

This room may import the rooms exposure, documents, dataset, packing, sampling, models and runs. The room imports no
torchtitan.
"""

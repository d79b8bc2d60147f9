"""Reports: tables and figures for people, of packed datasets, of runs and of studies.

- ``packed``: the lines after ``pack`` and ``append``.
- ``exposure``: the targets of a split per bucket of effective context, with their weights and their loss mass.
- ``policies``: the windows that each packing policy would make of the same documents.
- ``window``: the documents of one window as text.
- ``runs``: the last common validation of several runs side by side. ``comparison_rows`` has the rows.
- ``study``: the report of a study, as Markdown, HTML, pictures and CSV. ``study_sections``, ``study_tables``,
  ``study_figures`` and ``study_csv`` have its parts, and ``pages`` writes the page.
- ``figures``: the bar figure of all reports. matplotlib is imported when a figure is drawn.

This room may import the rooms exposure, documents, dataset, packing, sampling, models, runs and study. The room imports
no torchtitan.
"""

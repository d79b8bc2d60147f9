"""Studies: paired training runs that differ only in their arm.

1. :mod:`spec` reads a STUDY.toml: arms, seeds, starts, stages, outcomes.
2. :mod:`plan` lists the runs of the study, and the options of each run.
3. :mod:`session` runs the study: it checks the folder (:mod:`folder`), the arms (:mod:`pairing`) and the outcomes
   (:mod:`measurable`), trains, and writes the proof.
4. :mod:`runner` trains the runs, several at a time, and resumes a study after an interruption.
5. :mod:`proof` compares the finished runs. :mod:`windows` computes the windows of every step again.
6. :mod:`results` finds the finished runs of a study.
7. :mod:`outcomes` computes the value of every outcome of a run. :mod:`comparisons` compares the arms with the baseline.
8. :mod:`statistics` tests whether a rule is better, over pairs of runs. :mod:`checkpoint_difference` tests whether two
   checkpoints differ, over the documents of a validation. :mod:`weighting` computes the loss mass of every arm.

:mod:`fact_corpus` makes the corpus of the miniature study, text with planted facts. :mod:`facts` finds the facts in the
windows.

The room imports no torchtitan. A caller hands over the functions that complete configs and start processes.
"""

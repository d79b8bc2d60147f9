"""Evaluation: prompts -> answers -> scores. Each step can be repeated without the others.

1. :mod:`prepare` asks a suite (:mod:`suites`) for the examples of a length, and writes them once as a prompt set
   (:mod:`prompt_sets`). :mod:`prompt_tokenizer` counts the tokens, and adds the template of the model.
2. :mod:`generate` gives the prompts to an engine (:mod:`engines`) and appends the answers to a file (:mod:`answers`).
   An interrupted generation resumes at the next example. :mod:`models` makes the Hugging Face folder of a run.
3. :mod:`score` computes the scores (:mod:`scores`) from the prompts and the answers alone.

The room imports no torchtitan. Preparation and scoring import no torch. An engine or a suite imports its heavy package
when the engine or the suite is used.
"""

"""From a command line to the running processes of a training run. No module here imports torch before it must.

1. ``configs`` finds the config that a name means: a recipe, a TOML file, or a TOML that the package ships.
2. ``arguments`` reads the TOML (``toml_settings``) and the command line. ``setting_checks`` checks every name and value
   with ``options``.
3. ``options`` describes all options of a run. Its data, ``options.json``, comes from the config tree:
   ``python -m exact_titan.describe_options`` writes the file, and a test compares the file with the tree.
4. ``help_pages`` prints the options that people set, or all options.
5. ``command`` is ``exact-titan train``. ``agent`` starts the processes with torch's elastic agent.

A wrong option is therefore refused in a fraction of a second. The import of torch and torchtitan takes 5 to 80 seconds.
:func:`exact_titan.config.load_config` later parses the same arguments with the config tree itself.
"""

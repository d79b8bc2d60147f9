"""The machine under the package: files, folders, processes and the terminal. Every room may import this room.

- Files that appear whole or not at all (:mod:`atomic_files`), bounded readers (:mod:`bounded_files`, :mod:`json_files`,
  :mod:`toml_file`, :mod:`typed_values`), and errors of files as one line (:mod:`file_errors`).
- Folders that may come from somebody else (:mod:`folder_files`), and folders that one process may write
  (:mod:`folder_lock`).
- Processes (:mod:`processes`), the signal of a closed terminal (:mod:`hangup`), exits that Python drops (:mod:`exits`),
  and control characters of foreign text (:mod:`terminal`).
"""

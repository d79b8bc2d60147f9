"""Documents: from files to texts, and from texts to token ids.

1. :mod:`listing` finds the files of a source, on the local disk or at a URL (:mod:`remote`). :mod:`file_kinds` says
   which files are read. All other files are counted.
2. :mod:`sources` opens the files and yields the texts of their documents. :mod:`readers` reads the formats
   (:mod:`json_documents` reads JSON, :mod:`table_readers` reads tables), and :mod:`streams` decompresses the files and
   computes their digests. :mod:`limits` has the bounds of the memory.
3. :mod:`tokenizer` converts every text to token ids and ends every document with the end-of-text token
   (:mod:`end_of_text`).
   :mod:`long_texts` cuts a very long text into pieces for the tokenizer. :mod:`special_tokens` finds special tokens
   that a document spells in its text.
4. :mod:`token_files` reads documents that Megatron-LM (:mod:`megatron_files`) or datatrove (:mod:`datatrove_files`)
   tokenized before. These documents skip step 3. :mod:`token_file_base` has the part that both formats share.
5. Instructions take another way from rows to token ids. :mod:`templates` holds Dolly's template and the chat template
   of a tokenizer, :mod:`instructions` makes samples of rows, :mod:`special_letters` marks a user's text that spells a
   special token, and :mod:`sample_tokenizer` converts samples to token ids.
6. :mod:`digests` and :mod:`tokenizer_record` hold the names, sizes and digests that the manifest of a packed dataset
   records.

Words: a *source* is a file or a folder of documents. A *document* is one text. The end-of-text token is the last token
of every tokenized document.

The package imports no other room of exact_titan.
"""

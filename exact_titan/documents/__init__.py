"""Documents: from files to texts, and from texts to token ids.

1. :mod:`sources` lists the files of a source and reads the texts of their documents: JSON lines, Parquet and plain
   text, on the local disk or at a URL.
2. :mod:`tokenizer` converts every text to token ids and ends every document with the end-of-text token.
   :mod:`long_texts` cuts a very long text into pieces for the tokenizer.
3. :mod:`token_files` reads documents that Megatron-LM or datatrove tokenized before. These documents skip step 2.
4. :mod:`templates` holds the templates of instructions: Dolly's template, and the chat template of a tokenizer.
5. :mod:`digests` and :mod:`tokenizer_record` hold the names, sizes and digests that the manifest of a packed dataset
   records.

Words: a *source* is a file or a folder of documents. A *document* is one text. The end-of-text token is the last token
of every tokenized document.

The package imports no other package of exact_titan except ``errors``.
"""

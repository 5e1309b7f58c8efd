"""The embedded demo pair: how its tokenizer and models are made, and the report that measures them."""

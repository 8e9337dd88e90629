"""Problem families of the embedded corpus, one module per topic, written in the subset of `train.corpus.definition`."""

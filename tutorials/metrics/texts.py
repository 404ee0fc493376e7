"""How well a network reads text: a metric of a sample, and one of the whole set.

Whether a text is read without a mistake is known of each image alone: `exact` makes a metric of a sample,
and the comparison counts the texts gained and lost. The share of characters that are right is one number of
the whole set, as long texts have more of them: `characters` makes a metric of the set. For a recognizer
that ends in the scores of characters at each step (CTC):

    # myreader.py
    from texts import characters, exact, greedy

    read = greedy("0123456789")
    words, letters = exact(read), characters(read)

and ``tvmc-easyquant evaluate net.onnx --table net.json --data myreader:pairs --metric myreader:letters``,
where ``pairs`` yields (input, text). The file is an example: copy it.
"""

import numpy as np


def greedy(alphabet, blank=0):
    """A decoder: function(outputs of one image) -> text, from the scores (1, steps, 1 + len(alphabet)).

    The best class of each step; of equal neighbours one, and no blank. alphabet: the characters of the
    other classes, in their order.
    """
    characters = alphabet[:blank] + "\0" + alphabet[blank:]

    def read(outputs):
        best = np.argmax(outputs[0][0], axis=-1).tolist()
        kept = [b for b, before in zip(best, [None, *best], strict=False) if b != before and b != blank]
        return "".join(characters[b] for b in kept)

    return read


def exact(read):
    """The metric of a sample: 1.0 if the text is the label, 0.0 if there is any mistake."""
    return lambda outputs, label: float(read(outputs) == label)


def characters(read):
    """The metric of the set: 1 - edits / characters of the labels; 1.0 if all texts are the labels.

    Edits turn a text into its label: characters put in, taken out or replaced. Below 0 if there are more of
    them than characters.
    """

    def metric(edits, labels):
        return 1 - sum(edits) / max(1, sum(map(len, labels)))

    metric.of_set = True
    # once for each image, not each time that the bootstrap draws it
    metric.each = lambda outputs, label: distance(read(outputs), label)
    return metric


def distance(a, b):
    """The fewest edits that turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]

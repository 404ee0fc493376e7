"""Mean average precision of boxes: a metric of the whole set, for ``evaluate`` and ``quantize --max-drop``.

Boxes are judged together: a detection counts by its score among those of all images, so that an image has
no average precision of its own. `mean_average_precision` makes the metric for a network of yours:

    # mydetector.py
    from boxes import mean_average_precision

    def decode(outputs):  # the outputs of one image, as the model has them
        return outputs[0][0][outputs[0][0][:, 4] > 0.05]  # rows x0, y0, x1, y1, score, class

    mAP = mean_average_precision(decode)

and ``tvmc-easyquant evaluate net.onnx --table net.json --data mydetector:pairs --metric mydetector:mAP``,
where ``pairs`` yields (input, rows class, x0, y0, x1, y1). The file is an example: copy it.
"""

import numpy as np


def mean_average_precision(decode, overlap=0.5):
    """The metric: 0.0 to 1.0, the mean over the classes that the set has.

    decode: function(outputs of one image) -> its detections, (n, 6): x0, y0, x1, y1, score, class; without
    doubles (non-maximum suppression), if the network leaves any. A label: (n, 5): class, x0, y0, x1, y1.
    overlap: the intersection over union from which a detection is right; of one object only one is.
    """

    def metric(found, labels):
        found = np.concatenate(found)
        objects = [row[0] for label in labels for row in label]
        classes, counts = np.unique(objects, return_counts=True)
        if not len(classes):  # a bootstrap may draw images without any object
            return 0.0
        pairs = zip(classes, counts, strict=True)
        return float(np.mean([average_precision(found[found[:, 0] == c], n) for c, n in pairs]))

    metric.of_set = True
    # once for each image, not each time that the bootstrap draws it
    metric.each = lambda outputs, label: matches(decode(outputs), label, overlap)
    return metric


def average_precision(found, objects):
    """The area under precision over recall of one class, precision made falling (PASCAL VOC since 2010).

    found: `matches` of all images; objects: how many there are.
    """
    hits = np.cumsum(found[np.argsort(-found[:, 1], kind="stable"), 2])
    precision = hits / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return np.diff(hits, prepend=0) @ falling / objects


def matches(detections, label, overlap):
    """Of each detection in an image (class, score, 1.0 if it is right): (n, 3)."""
    detections, label = np.reshape(detections, (-1, 6)), np.reshape(label, (-1, 5))
    detections = detections[np.argsort(-detections[:, 4], kind="stable")]
    right = np.zeros(len(detections))
    for c in np.unique(detections[:, 5]):
        mine, truth = detections[:, 5] == c, label[label[:, 0] == c, 1:]
        right[mine] = matched(overlaps(detections[mine, :4], truth), overlap)
    return np.column_stack([detections[:, 5], detections[:, 4], right])


def matched(overlap, enough):
    """For each detection, best score first, whether it finds an object that none before it found."""
    free, right = np.ones(overlap.shape[1], bool), []
    for row in overlap:
        best = int(np.argmax(np.where(free, row, -1))) if free.any() else -1
        right.append(best >= 0 and row[best] >= enough)
        if right[-1]:
            free[best] = False
    return right


def overlaps(a, b):
    """Intersection over union of each box of ``a`` (n, 4) with each of ``b`` (m, 4): (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    size_a, size_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    return both / np.maximum(size_a[:, None] + size_b - both, 1e-9)

"""
OCR, from picture to text
=========================

A recognizer of text becomes one that runs in integers, and both read the same lines, side by side. It is
built like those of today: depthwise blocks with hard-swish and squeeze-and-excitation, attention over the
columns, scores that CTC decodes. It lies beside this file, 270 KiB; ``benchmarks/train_ocr_network.py``
trained it.
"""

import sys
from pathlib import Path

import numpy as np

try:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
except (ImportError, TypeError):
    print("skipped: Pillow 10.1 with FreeType is not installed (pip install 'tvm_easyquant[images]')")
    sys.exit()

import ocr.lines  # beside this file
from metrics.texts import characters, exact, greedy

import tvm_easyquant as eq
from tvm_easyquant.evaluate import compare, evaluate
from tvm_easyquant.host import installed

# %%
# Pictures
# --------
# Digits and capitals in Pillow's own font, at sizes, places and contrasts that vary, under noise.
# Thirty lines without their texts are for the calibration, two hundred with them for the judgement.

rng = np.random.default_rng(2026)
drawn = [ocr.lines.line(rng) for _ in range(230)]
calibration = [ocr.lines.normalise(picture) for picture, _ in drawn[:30]]
test = drawn[30:]
labelled = [({"line": ocr.lines.normalise(picture)}, text) for picture, text in test]


def as_characters(picture):
    """A picture for the terminal: 16 rows of 80 characters, heavier where it is farther from its ground."""
    small = picture.reshape(16, 2, 80, 2).mean((1, 3))
    ink = abs(small - np.median(small))
    return "\n".join("".join(" .:-=+*#%@"[int(i)] for i in row) for row in ink / ink.max() * 9)


picture, text = test[0]
print(f"{text}:\n{as_characters(picture)}")

# %%
# Quantize
# --------
# One calibration, two tables: at seven and at eight bits. Sums, gates, moves of heads and the
# attention's two products run in integers, too.

path = Path(ocr.lines.__file__).with_name("reader.onnx")
q = eq.quantize(path, calibration, bits=(7, 8))
networks = {"INT7": q.for_bits(7), "INT8": q.for_bits(8)}
print(f"{q.coverage:.0f} % of the multiply-accumulates run in integers")

# %%
# What stays float
# ----------------
# The plan says it by name, and why: the two normalizations, the softmax with the factor before it, and
# reshapes beside them.

for name, why in q.plan.floats.items():
    print(f"{name:20} {q.graph[name].op:20} {why}")

# %%
# Side by side
# ------------
# ``greedy`` of ``tutorials/metrics/texts.py`` makes text of the scores: the best class of each step, of
# equal neighbours one, and no blank. float32 is the network as it was read, in numpy.

read = greedy(ocr.lines.ALPHABET)
built = {name: network.build() for name, network in networks.items()}
runs = {"float32": lambda feed: list(q.graph.run(feed).values())}
runs |= {name: eq.Executor(network) for name, network in built.items()}


def texts(picture):
    """What each network reads."""
    return [read(run({"line": ocr.lines.normalise(picture)})) for run in runs.values()]


print(f"{'text':10} {'float32':10} {'INT7':10} {'INT8':10}")
for picture, text in test[:12]:
    print(*(f"{found:10}" for found in [text, *texts(picture)]))

# %%
# Two hundred lines
# -----------------
# Lines read without a mistake, and characters: one minus edits by characters of the text, a metric of the
# whole set. ``compare`` counts the lines that only one of the two reads, and says how far chance reaches.
# INT7 reads a line less than float32 here, which is within chance; INT8 reads as many.

metrics = {"exact": exact(read), "characters": characters(read)}
scores = {name: evaluate(run, labelled, metrics=metrics) for name, run in runs.items()}
for name in networks:
    for metric in metrics:
        print(name, metric, compare(scores[name][metric], scores["float32"][metric]), sep=": ")
assert scores["float32"]["exact"].mean() > 0.8
assert scores["INT7"]["characters"].value > scores["float32"]["characters"].value - 0.02

# %%
# The noise of the integers
# -------------------------
# Two hundred lines are few to tell networks apart by their texts. The scores say it more exactly: how much
# stronger they are than their error.


def noise(run):
    """SQNR of the scores in dB, on the test lines."""
    signal = error = 0.0
    for feed, _ in labelled:
        want, got = runs["float32"](feed)[0], run(feed)[0]
        signal, error = signal + (want**2).sum(), error + ((want - got) ** 2).sum()
    return 10 * np.log10(signal / error)


decibels = {name: noise(runs[name]) for name in networks}
print(*(f"{name} {db:.1f} dB" for name, db in decibels.items()), sep=", ")
assert decibels["INT8"] > decibels["INT7"] > 15

# %%
# The time of a line
# ------------------
# On this machine, on one thread, in turn. ``q.benchmark()`` has it layer by layer, beside TVM's float32.

installed().threads(1)
rounds = [{name: network.milliseconds(5) for name, network in built.items()} for _ in range(10)]
for name in built:
    print(f"{name} {np.median([took[name] for took in rounds]):.3f} ms")

# %%
# The answers as a picture
# ------------------------
# Give the script a name to keep it: ``python 14_ocr_from_picture_to_text.py answers.png``.
#
# .. image:: /pictures/14.png
#    :alt: lines of text, and beside each what float32, INT7 and INT8 read; mistakes are red

sheet = Image.new("RGB", (400, 280), "white")
draw = ImageDraw.Draw(sheet)
for column, name in enumerate(["float32", *networks]):
    draw.text((172 + 78 * column, 5), name, fill="grey", font=font)
for row, (picture, text) in enumerate(test[:7], 1):
    sheet.paste(Image.fromarray(picture), (4, 36 * row - 10))
    for column, found in enumerate(texts(picture)):
        colour = "black" if found == text else "red"
        draw.text((172 + 78 * column, 36 * row - 3), found, fill=colour, font=font)
if len(sys.argv) > 1:
    sheet.save(sys.argv[1])

# sphinx_gallery_thumbnail_path = 'pictures/14.png'

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

table = pd.DataFrame({"kind": ["a", "b", "a", "b"], "value": [1, 2, 5, 2]})
table.to_csv("/tmp/table.csv", index=False)
means = pd.read_csv("/tmp/table.csv").groupby("kind")["value"].mean()

figure, axes = plt.subplots()
means.plot.bar(ax=axes)
axes.set_title(r"means, $\sqrt{x}$")
for kind in ["png", "svg", "pdf"]:
    figure.savefig(f"/output/plot.{kind}")

random = np.random.default_rng(1)
matrix = random.random((300, 300))
vector = random.random(300)
solved = np.allclose(matrix @ np.linalg.solve(matrix, vector), vector)

features = random.random((500, 4))
labels = features[:, 0] + features[:, 1] > 1
train, test, train_labels, test_labels = train_test_split(features, labels, random_state=1)
model = LogisticRegression(C=100).fit(train, train_labels)

assert "/libopenblas" in Path("/proc/self/maps").read_text()
print(
    json.dumps(
        {
            "means": list(means),
            "solved": bool(solved),
            "accuracy": accuracy_score(test_labels, model.predict(test)),
            "backend": plt.get_backend(),
        }
    )
)

"""Which states grew most between two censuses? Reads /input, writes /output."""

import csv
import json
import os
import statistics
import tempfile

with open("/input/data.json") as file:
    request = json.load(file)
with open("/input/us_census.csv", newline="") as file:
    states = list(csv.DictReader(file))

before, after = str(request["from"]), str(request["to"])
for state in states:
    state["growth_percent"] = round(100 * (int(state[after]) / int(state[before]) - 1), 2)
states.sort(key=lambda state: state["growth_percent"], reverse=True)
growth = [state["growth_percent"] for state in states]
total = sum(int(state[after]) for state in states)

with open("/output/growth.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, ["state", before, after, "growth_percent"])
    writer.writeheader()
    writer.writerows(states)

# mkstemp makes a file of mode 0600: it is collected like any other.
descriptor, _ = tempfile.mkstemp(prefix="chart-", suffix=".txt", dir="/output")
with os.fdopen(descriptor, "w") as file:
    for state in states:
        file.write(f"{state['state']:<22}{state['growth_percent']:>6} {'#' * int(max(state['growth_percent'], 0))}\n")

with open("/output/result.json", "w") as file:
    json.dump(
        {
            "states": len(states),
            "population": total,
            "median_growth_percent": statistics.median(growth),
            "fastest": [f"{state['state']} {state['growth_percent']:+} %" for state in states[: request["top"]]],
            "shrinking": [state["state"] for state in states if state["growth_percent"] < 0],
        },
        file,
    )

import json

from joblib import Parallel, delayed


def same(number):
    return number


print(
    json.dumps(
        {
            kind: sum(Parallel(n_jobs=2, prefer=kind)(delayed(same)(n) for n in range(10)))
            for kind in ["threads", "processes"]
        }
    )
)

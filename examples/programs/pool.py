import json
from multiprocessing import Pool


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


if __name__ == "__main__":
    with Pool(4) as pool:
        primes = sum(pool.map(is_prime, range(50_000), chunksize=5_000))
    with open("/output/result.json", "w") as file:
        json.dump({"primes_below_50000": primes}, file)

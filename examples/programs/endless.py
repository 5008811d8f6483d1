number = 0
while True:
    number += 1
    if number % 5_000_000 == 0:
        print(f"still counting: {number:,}")

prices = {"apple": 3, "pear": 4}


def total(basket):
    return sum(prices[fruit] for fruit in basket)


print(total(["apple", "pear"]))
print(total(["apple", "plum"]))

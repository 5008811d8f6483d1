"""More entries than are looked at, deeper than is walked, with the longest names that there are."""
import os

os.chdir('/output')
with open('result.json', 'w') as file:
    file.write('"found"')
os.mkdir('many')
for number in range(21_000):
    os.close(os.open(f'many/{number:05}', os.O_CREAT))
os.mkdir('long')
for letter in 'abc':
    os.close(os.open('long/' + letter * 255, os.O_CREAT))
os.mkdir('deep')
os.chdir('deep')
for level in range(3000):
    os.mkdir('d' * 255)
    os.chdir('d' * 255)

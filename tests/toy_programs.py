"""Twenty small programs as beginners write them, with references that compute the same in another way.

Each draws inputs of its own; what its reference makes of them is what it has to write.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pyarrow as pa


@dataclass(frozen=True)
class Toy:
    name: str
    source: str
    reference: Callable[[str], str]
    draw: Callable[[Random], str]

    def tests(self, count: int, seed: int = 0) -> list[dict[str, str]]:
        random = Random(f"{self.name} {seed}")
        inputs = [self.draw(random) for _ in range(count)]
        return [{"input": given, "output": self.reference(given)} for given in inputs]


def batch_of(toys: list[Toy], count: int) -> pa.RecordBatch:
    """Documents with `count` tests each."""
    kind = pa.list_(pa.struct({"input": pa.string(), "output": pa.string()}))
    ids, texts = [toy.name for toy in toys], [toy.source for toy in toys]
    return pa.record_batch({"id": ids, "text": texts, "tests": pa.array([toy.tests(count) for toy in toys], kind)})


def numbers(low: int, high: int, shortest: int = 1, longest: int = 9) -> Callable[[Random], str]:
    """A count, and as many whole numbers."""

    def drawn(random: Random) -> str:
        found = [random.randint(low, high) for _ in range(random.randint(shortest, longest))]
        return f"{len(found)}\n{' '.join(map(str, found))}\n"

    return drawn


def one(low: int, high: int) -> Callable[[Random], str]:
    return lambda random: f"{random.randint(low, high)}\n"


def two(low: int, high: int) -> Callable[[Random], str]:
    return lambda random: f"{random.randint(low, high)} {random.randint(low, high)}\n"


def letters(alphabet: str, shortest: int = 1, longest: int = 12) -> Callable[[Random], str]:
    return lambda random: "".join(random.choices(alphabet, k=random.randint(shortest, longest))) + "\n"


def values(given: str) -> list[int]:
    return [int(word) for word in given.split()]


EVEN = """n = int(input())
a = list(map(int, input().split()))
s = 0
for i in range(n):
    if a[i] % 2 == 0:
        s += a[i] * 2
print(s)
print(len(a))
"""
KADANE = """n = int(input())
a = [int(x) for x in input().split()]
b = a[0]
c = a[0]
for x in a[1:]:
    c = max(x, c + x)
    b = max(b, c)
print(b)
"""
PRIMES = """n = int(input())
p = []
for i in range(2, n + 1):
    ok = True
    for q in p:
        if q * q > i:
            break
        if i % q == 0:
            ok = False
            break
    if ok:
        p.append(i)
k = len(p) + 0 * n
print(k)
print(*p)
"""
GCD = """def g(a, b):
    while b:
        a, b = b, a % b
    return a
x, y = map(int, input().split())
d = g(x, y)
m = x * y // d
print(d, m)
"""
WORDS = """w = input().split()
c = {}
for t in w:
    c[t] = c.get(t, 0) + 1
k = sorted(c.items(), key=lambda p: (-p[1], p[0]))
for a, b in k[:2]:
    print(a, b)
"""
PALINDROME = """s = input().strip()
t = [c for c in s if c != "."]
i = 0
j = len(t) - 1
ok = True
while i < j:
    if t[i] != t[j]:
        ok = False
    i += 1
    j -= 1
if ok:
    print("yes")
else:
    print("no")
"""
TRANSPOSE = """r, c = map(int, input().split())
m = []
for i in range(r):
    m.append(input().split())
for j in range(c):
    l = [m[i][j] for i in range(r)]
    print(" ".join(l))
"""
FIBONACCI = """n, m = map(int, input().split())
a, b = 0, 1
for i in range(n):
    t = (a + b) % m
    a = b
    b = t
r = a % m
print(r)
"""
COUNT_BELOW = """n = int(input())
a = sorted(map(int, input().split()))
x = a[0] + a[-1]
lo = 0
hi = n
while lo < hi:
    mid = (lo + hi) // 2
    if a[mid] * 2 < x:
        lo = mid + 1
    else:
        hi = mid
print(lo, n - lo)
"""
BRACKETS = """s = input().strip()
st = []
p = {")": "(", "]": "["}
ok = True
for c in s:
    if c in "([":
        st.append(c)
    elif not st or st.pop() != p[c]:
        ok = False
        break
r = ok and len(st) == 0
print("balanced" if r else "broken")
"""
ROMAN = """n = int(input())
v = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
r = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
s = ""
for k in range(len(v)):
    while n >= v[k]:
        s += r[k]
        n -= v[k]
l = len(s) * 1
print(s)
print(l)
"""
CAESAR = """k = int(input())
s = input().strip()
o = ""
for c in s:
    d = (ord(c) - 97 + k) % 26
    o += chr(d + 97)
print(o)
"""
SWAPS = """n = int(input())
a = list(map(int, input().split()))
w = 0
for i in range(n):
    for j in range(n - 1 - i):
        if a[j] > a[j + 1]:
            a[j], a[j + 1] = a[j + 1], a[j]
            w += 1
print(w)
print(*a)
"""
COLLATZ = """n = int(input())
c = 1
h = n
while n != 1:
    if n % 2 == 0:
        n = n // 2
    else:
        n = 3 * n + 1
    h = max(h, n)
    c += 1
print(c, h)
"""
DISTANCE = """a = input().strip()
b = input().strip()
p = list(range(len(b) + 1))
for i in range(1, len(a) + 1):
    q = [i]
    for j in range(1, len(b) + 1):
        d = p[j - 1] + (a[i - 1] != b[j - 1])
        q.append(min(d, p[j] + 1, q[j - 1] + 1))
    p = q
print(p[-1])
"""
KNAPSACK = """n, w = map(int, input().split())
f = [0] * (w + 1)
for i in range(n):
    a, b = map(int, input().split())
    for j in range(w, a - 1, -1):
        f[j] = max(f[j], f[j - a] + b)
print(f[w])
"""
MAZE = """from collections import deque
n, m = map(int, input().split())
g = [input() for i in range(n)]
d = {(0, 0): 0}
q = deque([(0, 0)])
while q:
    x, y = q.popleft()
    for a, b in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
        if 0 <= a < n and 0 <= b < m and g[a][b] == "." and (a, b) not in d:
            d[a, b] = d[x, y] + 1
            q.append((a, b))
r = d.get((n - 1, m - 1), -1)
print(r)
"""
BASE = """def f(n, b):
    r = ""
    while n > 0:
        r = "0123456789abcdef"[n % b] + r
        n //= b
    return r or "0"
n, b = map(int, input().split())
b = b % 15 + 2
t = f(n, b)
print(t)
print(sum(int(c, 16) for c in t))
"""
SPREAD = """import math
n = int(input())
a = list(map(int, input().split()))
m = sum(a) / n
v = sum((x - m) ** 2 for x in a) / n
d = math.sqrt(v)
print(f"{m:.3f} {d:.3f}")
"""
RUNS = """s = input().strip()
r = []
i = 0
while i < len(s):
    j = i
    while j < len(s) and s[j] == s[i]:
        j += 1
    r.append(s[i] + str(j - i))
    i = j
print("".join(r))
print(len(r))
"""


def kadane(given: str) -> str:
    found = values(given)[1:]
    spans = itertools.combinations(range(len(found) + 1), 2)
    return f"{max(sum(found[start:end]) for start, end in spans)}\n"


def primes(given: str) -> str:
    found = [n for n in range(2, int(given) + 1) if all(n % k for k in range(2, n))]
    return f"{len(found)}\n{' '.join(map(str, found))}\n"


def gcd(given: str) -> str:
    return f"{math.gcd(*values(given))} {math.lcm(*values(given))}\n"


def words(given: str) -> str:
    counted = sorted(Counter(sorted(given.split())).most_common(), key=lambda item: -item[1])
    return "".join(f"{word} {count}\n" for word, count in counted[:2])


def palindrome(given: str) -> str:
    kept = given.strip().replace(".", "")
    return "yes\n" if kept == kept[::-1] else "no\n"


def transpose(given: str) -> str:
    return "".join(
        f"{' '.join(row)}\n" for row in zip(*(line.split() for line in given.split("\n")[1:-1]), strict=True)
    )


def fibonacci(given: str) -> str:
    n, m = values(given)
    matrix, found = (1, 1, 0), (1, 0, 1)  # entries of powers of ((1, 1), (1, 0)), by squaring

    def product(x: tuple[int, int, int], y: tuple[int, int, int]) -> tuple[int, int, int]:
        return x[0] * y[0] + x[1] * y[1], x[0] * y[1] + x[1] * y[2], x[1] * y[1] + x[2] * y[2]

    while n:
        found, matrix, n = (product(found, matrix) if n & 1 else found), product(matrix, matrix), n >> 1
    return f"{found[1] % m}\n"


def count_below(given: str) -> str:
    found = values(given)[1:]
    below = sum(2 * value < min(found) + max(found) for value in found)
    return f"{below} {len(found) - below}\n"


def brackets(given: str) -> str:
    left = given.strip()
    while "()" in left or "[]" in left:
        left = left.replace("()", "").replace("[]", "")
    return "broken\n" if left else "balanced\n"


def roman(given: str) -> str:
    digits = [("I", "V", "X"), ("X", "L", "C"), ("C", "D", "M"), ("M", "", "")]
    shapes = ["", "0", "00", "000", "01", "1", "10", "100", "1000", "02"]
    found = ""
    for sign, digit in zip(digits, reversed(given.strip()), strict=False):
        found = "".join(sign[int(k)] for k in shapes[int(digit)]) + found
    return f"{found}\n{len(found)}\n"


def caesar(given: str) -> str:
    key, text = given.split()
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    turned = int(key) % 26
    return text.translate(str.maketrans(alphabet, alphabet[turned:] + alphabet[:turned])) + "\n"


def swaps(given: str) -> str:
    found = values(given)[1:]
    inversions = sum(x > y for x, y in itertools.combinations(found, 2))
    return f"{inversions}\n{' '.join(map(str, sorted(found)))}\n"


def collatz(given: str) -> str:
    def path(n: int) -> list[int]:
        return [n] if n == 1 else [n, *path(3 * n + 1 if n % 2 else n // 2)]

    found = path(int(given))
    return f"{len(found)} {max(found)}\n"


def distance(given: str) -> str:
    def between(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        options = between(a[1:], b) + 1, between(a, b[1:]) + 1, between(a[1:], b[1:]) + (a[0] != b[0])
        return min(options)

    first, second = given.split("\n")[:2]
    return f"{between(first, second)}\n"


def knapsack(given: str) -> str:
    (_, room), *things = [values(line) for line in given.strip().split("\n")]
    sets = itertools.chain.from_iterable(itertools.combinations(things, k) for k in range(len(things) + 1))
    return f"{max(sum(v for _, v in some) for some in sets if sum(w for w, _ in some) <= room)}\n"


def maze(given: str) -> str:
    size, *rows = given.strip().split("\n")
    n, m = values(size)
    away = {(0, 0): 0}
    for _ in range(n * m):  # Bellman and Ford's way
        for (x, y), steps in list(away.items()):
            for place in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if 0 <= place[0] < n and 0 <= place[1] < m and rows[place[0]][place[1]] == ".":
                    away[place] = min(away.get(place, n * m), steps + 1)
    return f"{away.get((n - 1, m - 1), -1)}\n"


def base(given: str) -> str:
    n, b = values(given)
    b = b % 15 + 2
    digits = [n // b**k % b for k in reversed(range(40))]
    shown = "".join(f"{digit:x}" for digit in digits).lstrip("0") or "0"
    return f"{shown}\n{sum(digits)}\n"


def spread(given: str) -> str:
    found = values(given)[1:]
    return f"{statistics.fmean(found):.3f} {statistics.pstdev(found):.3f}\n"


def runs(given: str) -> str:
    found = [(sign, len(list(run))) for sign, run in itertools.groupby(given.strip())]
    return "".join(f"{sign}{length}" for sign, length in found) + f"\n{len(found)}\n"


def table(random: Random) -> str:
    rows, columns = random.randint(1, 4), random.randint(1, 4)
    lines = [" ".join(str(random.randint(0, 99)) for _ in range(columns)) for _ in range(rows)]
    return "\n".join([f"{rows} {columns}", *lines, ""])


def things(random: Random) -> str:
    lines = [f"{random.randint(1, 9)} {random.randint(1, 20)}" for _ in range(random.randint(1, 6))]
    return "\n".join([f"{len(lines)} {random.randint(1, 25)}", *lines, ""])


def walls(random: Random) -> str:
    n, m = random.randint(1, 5), random.randint(1, 5)
    rows = ["".join(random.choices(".#", (3, 1), k=m)) for _ in range(n)]
    rows[0] = "." + rows[0][1:]
    return "\n".join([f"{n} {m}", *rows, ""])


def shifted(random: Random) -> str:
    return f"{random.randint(0, 40)}\n{letters('abcxyz')(random)}"


def pair(random: Random) -> str:
    return letters("abc", 1, 5)(random) + letters("abc", 1, 5)(random)


def some_words(random: Random) -> str:
    return " ".join(random.choices(["to", "be", "or", "not"], k=random.randint(1, 12))) + "\n"


TOYS = [
    Toy("even", EVEN, lambda g: f"{sum(2 * v for v in values(g)[1:] if not v & 1)}\n{values(g)[0]}\n", numbers(-9, 9)),
    Toy("kadane", KADANE, kadane, numbers(-9, 9)),
    Toy("primes", PRIMES, primes, one(2, 60)),
    Toy("gcd", GCD, gcd, two(1, 60)),
    Toy("words", WORDS, words, some_words),
    Toy("palindrome", PALINDROME, palindrome, letters("aab.", 1, 5)),
    Toy("transpose", TRANSPOSE, transpose, table),
    Toy("fibonacci", FIBONACCI, fibonacci, two(1, 50)),
    Toy("count_below", COUNT_BELOW, count_below, numbers(0, 20)),
    Toy("brackets", BRACKETS, brackets, letters("()[]", 1, 4)),
    Toy("roman", ROMAN, roman, one(1, 3999)),
    Toy("caesar", CAESAR, caesar, shifted),
    Toy("swaps", SWAPS, swaps, numbers(0, 9)),
    Toy("collatz", COLLATZ, collatz, one(1, 60)),
    Toy("distance", DISTANCE, distance, pair),
    Toy("knapsack", KNAPSACK, knapsack, things),
    Toy("maze", MAZE, maze, walls),
    Toy("base", BASE, base, two(0, 999)),
    Toy("spread", SPREAD, spread, numbers(0, 99)),
    Toy("runs", RUNS, runs, letters("ab", 1, 9)),
]

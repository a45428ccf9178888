"""Prompts with the kind that a person would give them: the first list is for tuning the classifier's signs.

The second was to be kept from that, and was looked at: what is said of it is not what strange prompts would get.
"""

# ruff: noqa: E501  # a prompt is as long as it is

from __future__ import annotations

from typing import Final

from weir_router.models.classify import Kind

TUNED: Final[list[tuple[Kind, str]]] = [
    ("simple", "What is the capital of Mongolia?"),
    ("simple", "hi"),
    ("simple", "Translate 'good night' into French."),
    ("simple", "Who wrote The Trial?"),
    ("simple", "How many ounces are in a pound?"),
    ("simple", "Is a tomato a fruit?"),
    ("simple", "Summarize this in one sentence: The meeting moved from Monday to Thursday because the room was taken."),
    ("simple", "List three synonyms of happy."),
    ("simple", "When did the Berlin wall fall?"),
    ("simple", "Convert 30 miles to kilometres"),
    ("simple", "Thanks, that helps!"),
    ("simple", "Correct the spelling: recieve, definately, seperate"),
    ("simple", "which planet is the largest"),
    ("code", "Write a Python function that merges two sorted lists."),
    ("code", "Why do I get `TypeError: 'NoneType' object is not iterable` here?\n\nfor x in load():\n    print(x)"),
    ("code", "Refactor this class so that the database is passed in."),
    ("code", '```\nfn main() { println!("{}", x) }\n```\nwhy does it not compile'),
    ("code", "Give me a regex for an IPv4 address."),
    ("code", "SELECT name FROM users WHERE id = 3 returns nothing, what is wrong with my query?"),
    ("code", "How do I undo my last git commit without losing the changes?"),
    ("code", "Write unit tests for the parser with pytest."),
    ("code", "Explain what this does: const f = (a) => a.map(x => x * 2);"),
    ("code", "Implement a hash map with open addressing in C++"),
    ("code", "My docker container exits with code 137. How do I debug it?"),
    ("code", "convert this bash script to a Makefile"),
    (
        "complex",
        "Compare the trade-offs of nuclear and solar power for a small island state, considering cost, risk and politics.",
    ),
    ("complex", "Prove that there are infinitely many primes of the form 4k+3."),
    (
        "complex",
        "Design a go-to-market strategy for a bakery that wants to sell by subscription, and explain why you chose it.",
    ),
    ("complex", "Analyze the causes of the First World War in detail and argue which one mattered most."),
    ("complex", "Explain why the sky is blue, step by step, from Rayleigh scattering to how the eye sees."),
    (
        "complex",
        "Critique this argument: since all swans I have seen are white, all swans are white. Assess its implications for science.",
    ),
    (
        "complex",
        "I run a clinic with three doctors and two rooms. Given that each sees patients of 15, 30 or 45 minutes, plan a weekly schedule that is fair, then justify it.",
    ),
    (
        "complex",
        "What are the implications of quantitative easing for emerging markets? Evaluate both the short and the long term.",
    ),
    (
        "complex",
        "Write an essay on whether free will is compatible with determinism, with at least three perspectives.",
    ),
    ("complex", "Derive the formula for the variance of a sum of correlated variables."),
    (
        "complex",
        "How would you structure a negotiation between two companies that distrust each other? Think about incentives, first meetings, and how it could fail.",
    ),
]

HELD_OUT: Final[list[tuple[Kind, str]]] = [
    ("simple", "What's the boiling point of ethanol?"),
    ("simple", "hello there"),
    ("simple", "Define entropy in one line."),
    ("simple", "How old is the universe?"),
    ("simple", "Name the seven dwarfs."),
    ("simple", "Does Iceland have an army?"),
    ("simple", "Rewrite politely: send me the file now."),
    ("simple", "Where is the Atacama desert?"),
    ("simple", "Good morning! What day is it today?"),
    ("simple", "Spell accommodate."),
    ("simple", "Tell me a joke about cats."),
    ("simple", "What time is it in Tokyo when it is noon in Paris?"),
    ("code", "Write a function in JavaScript to debounce another function."),
    ("code", "This loop never ends, can you see why?\n\nwhile (i < 10) {\n  j++;\n}"),
    ("code", "How can I read a CSV file with pandas and skip the first row?"),
    ("code", "Fix: ModuleNotFoundError: No module named 'yaml'"),
    ("code", "What is the difference between a mutex and a semaphore? Show code."),
    ("code", "Create a React component with a button that counts clicks."),
    ("code", "Optimize this SQL query, it does a full table scan."),
    ("code", "Write a Kubernetes deployment for nginx with two replicas."),
    ("code", "def add(a, b):\n    return a - b\n\nWhat is the bug?"),
    ("code", "How do I reverse a linked list recursively?"),
    ("code", "Port the following Java method to Kotlin."),
    ("code", "Add type hints to my script."),
    ("complex", "Discuss the ethical implications of gene editing in embryos, weighing autonomy against justice."),
    ("complex", "Prove or refute: every continuous function on a closed interval is uniformly continuous."),
    ("complex", "Develop a five-year plan to reduce a city's traffic by a third, with budget, risks and milestones."),
    ("complex", "Compare Kant's and Mill's views on lying and say which is more convincing."),
    (
        "complex",
        "Explain how inflation, interest rates and exchange rates interact, and why a central bank might raise rates in a recession.",
    ),
    ("complex", "Evaluate the pros and cons of remote work for a company of two hundred people."),
    (
        "complex",
        "A farmer has 100 m of fence and wants the largest rectangular field along a river. Derive the answer step by step.",
    ),
    (
        "complex",
        "Write a comprehensive report about water scarcity in Central Asia, its history and what could be done.",
    ),
    ("complex", "Why did the Roman Republic fall? Give a nuanced analysis with at least four causes."),
    (
        "complex",
        "Propose an experiment to test whether bilingual children switch tasks faster, including controls and how you would analyze the data.",
    ),
    (
        "complex",
        "Given these three offers for a mortgage, which should a young family take, assuming that they may move in seven years?",
    ),
    ("complex", "Interpret the last stanza of The Waste Land and relate it to the poem's structure."),
]

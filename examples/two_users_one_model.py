"""Two users of one chain and one model, at the same time, each with a memory of their own.

Shows: a LangChain chain with `ChatDeltaMem`, called for two users concurrently.
Prints: what each is answered: the name of their own cat.

python examples/two_users_one_model.py
"""

import asyncio

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig

from langchain_deltamem import ChatDeltaMem

FACTS = {"ada": "My cat's name is Pepper.", "bob": "My cat's name is Clover."}
QUESTION = "What is my cat's name?"


def whose(user: str) -> RunnableConfig:
    return {"configurable": {"deltamem_agent_id": user}}


async def main(model: BaseChatModel) -> dict[str, str]:
    """What each user is told when they ask, with nothing in the prompt but the question."""
    chain = ChatPromptTemplate.from_messages([("human", "{text}")]) | model | StrOutputParser()
    await asyncio.gather(*(chain.ainvoke({"text": fact}, whose(user)) for user, fact in FACTS.items()))
    answers = await asyncio.gather(*(chain.ainvoke({"text": QUESTION}, whose(user)) for user in FACTS))
    return dict(zip(FACTS, answers, strict=True))


if __name__ == "__main__":
    for user, answer in asyncio.run(main(ChatDeltaMem(store="memory:", max_tokens=24))).items():
        print(f"{user} asks: {QUESTION}\n{answer}\n")

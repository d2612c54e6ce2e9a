"""LlamaIndex integration of δ-mem: a local LLM that remembers in its own state.

`DeltaMemLLM` is the LLM. `use_agent` selects the agent for a block of code. `DeltaMemFunctionAgent` and
`DeltaMemReActAgent` keep their memory in the workflow's context. `DeltaMemoryBlock` absorbs messages that leave
LlamaIndex's short-term memory. `source_nodes` lists the statements that a reply used. `DeltaMemRetriever` searches an
agent's memory.
"""

from deltamem_agents.bridges import use_agent
from llama_index.llms.deltamem.agents import DeltaMemFunctionAgent, DeltaMemReActAgent
from llama_index.llms.deltamem.llm import DeltaMemLLM
from llama_index.llms.deltamem.memory_block import DeltaMemoryBlock
from llama_index.llms.deltamem.replies import source_nodes
from llama_index.llms.deltamem.retriever import DeltaMemRetriever

__version__ = "0.1.0"
__all__ = [
    "DeltaMemFunctionAgent",
    "DeltaMemLLM",
    "DeltaMemReActAgent",
    "DeltaMemRetriever",
    "DeltaMemoryBlock",
    "source_nodes",
    "use_agent",
]

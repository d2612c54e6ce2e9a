"""LlamaIndex on a local model that remembers in its own state.

`DeltaMemLLM` is the LLM, and `use_agent` says whose memory a block of code uses. `DeltaMemFunctionAgent` and
`DeltaMemReActAgent` keep their memory in the workflow's context, and `DeltaMemoryBlock` absorbs what leaves
LlamaIndex's short-term memory. `source_nodes` says which statements of the memory a reply rests on, and
`DeltaMemRetriever` finds those that a query is about.
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

"""What the page says about itself."""

TITLE = "Video-LLaMA"

INTRODUCTION = """\
<header class="intro"><h1>Video-LLaMA</h1>
<p>An instruction-tuned audio-visual language model: it watches a clip, hears it, and talks about \
it.</p></header>
"""

LIMITS = """\
* It makes mistakes: it names things that are not there and misses things that are. A few frames \
and a few seconds of sound reach it, no more; *what the model sees and hears* shows which.
* Its ears were trained on pictures. It hears what usually goes with what it would see.
* It was not made for long films, for reading text in pictures, or for understanding speech.
* An answer is no advice. Do not use it to identify people, or to decide about them.
"""

TERMS = """\
By using this page you agree: the service is a research preview, for non-commercial use only. It \
has few safety measures and may produce offensive content. It must not be used for any illegal, \
harmful, violent, racist or sexual purposes. Hand in only what you may hand in.

The files of a conversation are deleted from this server some minutes after its page is closed or \
*Restart* is pressed; nobody else is shown them.

The code is under the BSD 3-Clause licence. The weights carry their own terms: LLaMA 2 the Llama 2 \
Community License and its acceptable-use policy, Vicuna the terms of LLaMA, ImageBind CC BY-NC 4.0.
"""

CITATION = """\
```bibtex
@article{damonlpsg2023videollama,
  author  = {Zhang, Hang and Li, Xin and Bing, Lidong},
  title   = {Video-LLaMA: An Instruction-tuned Audio-Visual Language Model for Video Understanding},
  journal = {arXiv preprint arXiv:2306.02858},
  year    = {2023}
}
```
"""

# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Short chat templates in the styles that are about, and conversations for them."""

from __future__ import annotations

from typing import Any

CHATML = """\
{%- if tools %}
<|im_start|>system
You may call:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- elif message['content'] %}
    {%- for part in message['content'] %}{{ part['text'] }}{% endfor %}
{%- endif %}
{%- for call in message['tool_calls'] or [] %}
<tool>{{ call['function'] | tojson }}</tool>
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Headers around the role, trimmed contents, the first system message joined with the tools.
HEADERS = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{% set messages = messages[1:] %}
{%- endif %}
{%- if system or tools %}
{{- '<|im_start|>system<|im_end|>\\n\\n' + (system | string | trim) }}
    {%- if tools %}{{ '\\nFunctions: ' + (tools | tojson(indent=2)) }}{% endif %}
{{- '</s>' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' }}
{%- if message['tool_calls'] is defined %}{{ message['tool_calls'][0]['function'] | tojson }}
{%- elif message['content'] is string %}{{ message['content'] | trim }}
{%- else %}{{ (message['content'] or []) | map(attribute='text') | join('\\n') | trim }}
{%- endif %}
{{- '</s>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\\n\\n' }}{% endif %}"""

# Instructions in brackets that are no tokens, the end token after answers alone.
INSTRUCT = """\
{{- bos_token }}
{%- for message in messages %}
{%- set text = message['content'] if message['content'] is string
    else (message['content'] or []) | map(attribute='text') | join %}
{%- if message['role'] == 'assistant' %}{{ ' ' + text + eos_token }}
{%- elif message['role'] == 'tool' %}{{ ' [RESULT] ' + text + ' [/RESULT]' }}
{%- else %}
    {%- if tools and loop.last %}{{ '[TOOLS] ' + (tools | tojson) + ' [/TOOLS]' }}{% endif %}
    {{- '[INST] ' + text + ' [/INST]' }}
{%- endif %}
{%- endfor %}"""

# Roles under other names, turns that must alternate, no system message.
TURNS = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}
{%- if tools %}{{ raise_exception('No tools: ' ~ tools | length ~ ' given') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Turns must alternate, see turn ' ~ loop.index) }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<|im_start|>' + role + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""

# Blocks that mark answers for training.
GENERATION = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}
{%- else %}{{ message['content'] }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "turns": TURNS,
    "generation": GENERATION,
}

USER = {"role": "user", "content": "the fox"}
PARTS = [{"type": "text", "text": "the fox "}, {"type": "text", "text": "jumps 你好"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "a < b", "é": [1, None]}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": 'the "fox" & <dog>',
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
        },
    }
]

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [{"role": "system", "content": " You are brief. "}, USER],
    "turns": [USER, {"role": "assistant", "content": "the dog"}, {"role": "user", "content": "b"}],
    "unicode": [
        {"role": "user", "content": "Größe e\u0301 你好 👩‍👩‍👧 \u200d\u00a0 नमस्ते مرحبا \ufeff\x00"}
    ],
    "empty": [{"role": "user", "content": ""}],
    "blank": [{"role": "user", "content": " \n\t "}],
    "spaces": [{"role": "user", "content": "  the fox \n\n"}],
    "prefill": [USER, {"role": "assistant", "content": "the quick"}],
    "prefill_with_spaces": [USER, {"role": "assistant", "content": " the quick  "}],
    "parts": [{"role": "user", "content": PARTS}],
    "parts_of_an_answer": [USER, {"role": "assistant", "content": PARTS}],
    "calls": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"y": 3}'},
    ],
    "added": [{"role": "user", "content": "<think>the</think> <tool>fox"}],
    "braces": [
        {"role": "user", "content": "{{ bos_token }}{% for x in y %} <s <| [INST] im_end|>"}
    ],
}

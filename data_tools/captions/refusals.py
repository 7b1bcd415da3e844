"""Refusals: answers in which a model says that it cannot or will not describe an image, in ten languages.

Only the start of a sentence counts, since text within an image may say "I'm sorry", too; and the sentence
must be about the model's task, or about rules.
"""

from __future__ import annotations

import re

_SORRY = (
    r"(?:(?:(?:i[’']?m|i am|we are|we[’']re)\s+)?(?:(?:really|very|so|truly|terribly|deeply)\s+)?"
    r"(?:sorry|afraid)|(?:i|we) (?:deeply |sincerely )?apologi[sz]e|(?:my |our )?apologies)"
)
_HOWEVER = (
    r"(?:unfortunately|regrettably|sadly|however|but|at this time"
    r"|as (?:an?|the) (?:ai|artificial|large|language|vision)[^.,]{0,40})"
)
_CANNOT = (
    r"(?:can[’']?t|cannot|can not|could not|couldn[’']?t|won[’']?t|will not|would not|wouldn[’']?t"
    r"|(?:am|[’']m|are|[’']re) (?:unable|not able|not allowed|not permitted|not comfortable|not designed"
    r"|not going|prohibited|restricted)"
    r"|(?:do not|don[’']?t) (?:feel comfortable|have the ability|have permission|have access|provide|describe"
    r"|identify|engage)"
    r"|must (?:decline|refuse)|have to (?:decline|refuse)|decline|refuse|need to decline)"
)
_TASK = (
    r"(?:assist|help|describ|identif|provid|comply|creat|fulfil|generat|caption|analy[sz]|view"
    r"|see (?:the|this|any)|process|continu|do (?:that|this)|comment|discuss"
    r"|engag|respond|answer|support|participat|write|proceed"
    r"|offer|give|access|display|look at|recogni[sz]|request|content|image)"
)
_ENGLISH = re.compile(
    rf"(?:^|[.!?…]\s+)\W*(?:"
    rf"{_SORRY}[\s,.:;–—-]*(?:but\s+)?(?:that|this|i|we|it|there|for)\b"
    rf"|(?:{_HOWEVER}[\s,]*)?(?:i|we)\s*{_CANNOT}\b[^.!?\n]{{0,80}}{_TASK}"
    rf"|(?:unable|not able) to {_TASK}"
    r"|as an ai\b|as a (?:large )?language model\b"
    r"|(?:it is|it[’']s) not (?:possible|appropriate) (?:for me )?to"
    rf"|(?:this|the|your) (?:request|image|content|prompt)\b[^.!?\n]{{0,60}}"
    r"(?:violates|against (?:my|our|the) (?:guidelines|policy|policies)"
    r"|(?:can[’']?t|cannot) be (?:described|processed))"
    r"|sorry, (?:but )?(?:i|we)\b|no,? i (?:can[’']?t|won[’']?t))",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"^\W*(?:"
    # Chinese
    r"(?:很|非常|十分)?(?:抱歉|对不起|對不起|不好意思)|我(?:无法|無法|不能|没法|不可以|拒绝)|作为(?:一个|一名)?(?:AI|人工智能|语言模型)"
    # Japanese
    r"|(?:大変|誠に|本当に)?(?:申し訳(?:ありません|ございません|ない)|すみません|ごめんなさい)|(?:お手伝い|説明|お答え|対応)(?:は|を)?(?:できません|いたしかねます|致しかねます)"
    # Korean
    r"|(?:정말 )?(?:죄송(?:합니다|하지만)|미안(?:합니다|하지만))"
    # Spanish and Portuguese
    r"|(?:lo siento|lamento|lamentablemente|desafortunadamente|perd[oó]n\w*)\b"
    r"|(?:desculp\w+|sinto muito|infelizmente)\b"
    r"|no (?:puedo|podemos|me es posible|estoy autorizad\w)\b[^.]{0,60}"
    r"(?:ayud|describ|identific|analiz|proporcion|responder|continuar)"
    r"|n[ãa]o (?:posso|consigo|podemos)\b[^.]{0,60}(?:ajud|descrev|identific|analis|fornec|responder)"
    # French
    r"|(?:je suis (?:vraiment )?d[ée]sol[ée]e?|d[ée]sol[ée]e?|malheureusement)\b"
    r"|je ne (?:peux|suis|puis)\b[^.]{0,60}"
    r"(?:aider|d[ée]crire|identifier|analyser|fournir|r[ée]pondre|mesure)"
    # German
    r"|(?:es tut mir (?:sehr )?leid|tut mir leid|leider|entschuldigung|ich bedaure)\b"
    r"|ich (?:kann|darf|werde)\b[^.]{0,60}(?:nicht|keine)\b[^.]{0,60}"
    r"(?:helfen|beschreiben|identifizieren|beantworten|unterstützen)"
    # Italian
    r"|(?:mi dispiace|purtroppo|spiacente)\b"
    r"|non posso\b[^.]{0,60}(?:aiut|descriv|identific|fornir|rispond)"
    # Russian
    r"|(?:извините|простите|к сожалению|мне (?:очень )?жаль|прошу прощения)|я не (?:могу|смогу)"
    r")",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Return True if a captioner refused instead of describing the image."""
    stripped = text.strip()
    return bool(_ENGLISH.search(stripped) or _OTHERS.match(stripped))

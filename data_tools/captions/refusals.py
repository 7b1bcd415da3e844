"""Refusals: answers in which a model says that it cannot, will not or may not describe an image, or sees"
" none.

Only the start of a sentence counts, since text within an image may say "I'm sorry", too; and the sentence
must be about the model's task, its rules, or the image that it was sent.
"""

from __future__ import annotations

import re

_SORRY = (
    r"(?:(?:(?:i[’']?m|i am|we are|we[’']re)\s+)?(?:(?:really|very|so|truly|terribly|deeply)\s+)?"
    r"(?:sorry|afraid)|(?:i|we) (?:deeply |sincerely )?apologi[sz]e|(?:my |our )?apologies)"
)
_HOWEVER = (
    r"(?:unfortunately|regrettably|sadly|however|but|at this time"
    r"|as (?:an?|the) (?:ai|artificial|large|language|vision|text)[^.,]{0,40}"
    r"|(?:due to|for|because of|in line with|given)[^.,]{0,40}(?:safety|privacy|policy|policies"
    r"|guidelines?|rules|ethic)"
    r"[^.,]{0,40})"
)
_CANNOT = (
    r"(?:can[’']?t|cannot|can not|could not|couldn[’']?t|won[’']?t|will not|would not|wouldn[’']?t"
    r"|(?:am|[’']m|are|[’']re) (?:unable|not able|not allowed|not permitted|not comfortable|not designed"
    r"|not going|prohibited|restricted)"
    r"|(?:do not|don[’']?t) (?:feel comfortable|have the ability|have permission|have access|provide|describe"
    r"|identify|engage)"
    r"|(?:must|have to|need to)?\s*(?:respectfully |politely )?(?:decline|refuse))"
)
_TASK = (
    r"(?:assist|help|describ|identif|provid|comply|creat|fulfil|generat|caption|analy[sz]|view"
    r"|see (?:the|this|any)|process|continu|do (?:that|this)|comment|discuss"
    r"|engag|respond|answer|support|participat|write|proceed"
    r"|offer|give (?:a|an|any|you|the)|access|display|look at|recogni[sz]|request|content|image)"
)
_NO_IMAGE = (
    r"(?:i|we) (?:do not|don[’']?t|cannot|can[’']?t|am not able to|[’']m not able to)(?: actually"
    r"| currently)? see"
    r" (?:any|an|the|your) (?:image|pictur\w+|photo|attach)"
    r"|(?:it|this) (?:seems|looks|appears)\b[^.!?\n]{0,40}"
    r"\b(?:image|pictur\w+|photo|attachment)[^.!?\n]{0,40}"
    r"(?:\bnot|n[’']t|\bmissing|\bfailed|\battached|\bprovided|\buploaded)\b"
    r"|(?:there is|there[’']s)?\s*no (?:image|pictur\w+|photo|attachment)\s+(?:is |was |has been )?"
    r"(?:provided|attached|uploaded|included|shared|given)"
    r"|(?:(?:could|can|would) you\s+)?(?:please )?(?:provide|upload|share|attach|send"
    r"|re-?upload)\b[^.!?\n]{0,20}"
    r"\b(?:the|an|your|that) (?:image|pictur\w+|photo)"
    r"|(?:i[’']?m|i am) an? (?:text|language)[- ](?:based|only|model)"
)
_RULES = (
    r"(?:this|the|your) (?:request|image|content|prompt)\b[^.!?\n]{0,60}"
    r"(?:violat|against (?:my|our|the) (?:guidelines|policy|policies)"
    r"|(?:can[’']?t|cannot) be (?:described|processed)|that (?:i|we) (?:cannot|can[’']?t))"
    r"|(?:my|our|the) (?:guidelines|polic(?:y|ies)|programming|rules)\b[^.!?\n]{0,20}(?:prevent|prohibit"
    r"|do(?:es)? not allow"
    r"|don[’']?t allow|forbid)"
    r"|(?:that|this)(?:[’']s| is) not something (?:that )?(?:i|we)\b"
    r"|(?:request|access) (?:denied|refused|rejected|blocked)\W*$"
)
_ENGLISH = re.compile(
    rf"(?:^|[.!?…]\s+)\W*(?:"
    rf"{_SORRY}[\s,.:;–—-]*(?:but\s+)?(?:that|this|i|we|it|there|for|as)\b"
    rf"|(?:{_HOWEVER}[\s,]*)?(?:i|we)\s*{_CANNOT}\b[^.!?\n]{{0,80}}{_TASK}"
    rf"|(?:unable|not able) to {_TASK}"
    r"|(?:i|we) (?:must|have to|need to) (?:respectfully |politely )?(?:decline|refuse)\b"
    r"|as an ai\b|as a (?:large )?language model\b|as a text-(?:only|based)"
    r"|(?:it is|it[’']s) not (?:possible|appropriate) (?:for me )?to"
    rf"|{_RULES}|{_NO_IMAGE}"
    r"|sorry, (?:but )?(?:i|we)\b|no,? i (?:can[’']?t|won[’']?t))",
    re.IGNORECASE,
)
# By language: apologies, "I cannot" with the task, rules, and an image that did not arrive.
_BY_LANGUAGE = {
    "Chinese": r"(?:很|非常|十分)?(?:抱歉|对不起|對不起|不好意思)"
    r"|我(?:无法|無法|不能|没法|不可以|拒绝|看不到|沒有看到|没有看到)"
    r"|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|(?:请|請)(?:您)?(?:提供|上传|上傳|发送)[^。]{0,10}(?:图|圖|照片)"
    r"|[^。]{0,30}(?:违反|違反)[^。]{0,20}(?:政策|规定|準則|准则)|[^。]{0,30}我(?:无法|無法|不能)(?:描述|提供|识别|回答|帮助)",
    "Japanese": r"(?:大変|誠に|本当に)?(?:申し訳(?:ありません|ございません|ない)|すみません|ごめんなさい)"
    r"|[^。]{0,20}(?:お手伝い|説明|お答え|対応|描写|特定)"
    r"(?:することは|することが|は|を|が)?(?:できません|できかねます|いたしかねます|致しかねます)"
    r"|画像(?:が|は)(?:見えません|添付されていません|見当たりません)|画像を(?:提供|アップロード|送信)して",
    "Korean": r"(?:정말 )?(?:죄송(?:합니다|하지만)|미안(?:합니다|하지만))"
    r"|[^.]{0,20}이미지(?:를|가|는)[^.]{0,20}"
    r"(?:볼 수 없|설명할 수 없|보이지 않|없습니다)"
    r"|[^.]{0,20}(?:도와드릴|답변할|설명할) 수 (?:없|가 없)|이미지를 (?:제공|업로드)",
    "Spanish": r"(?:lo siento|lamento|lamentablemente|desafortunadamente|perd[oó]n\w*|disculp\w+)\b"
    r"|no (?:puedo|podemos|me es posible|estoy autorizad\w)\b[^.]{0,60}"
    r"(?:ayud|describ|identific|analiz|proporcion|responder|continuar)"
    r"|no veo (?:ninguna|la|una) imagen|por favor,? (?:proporcion|sub|env|compart|adjunt)\w+[^.]{0,20}imagen"
    r"|est[ae] (?:solicitud|imagen|contenido)[^.]{0,30}(?:infringe|viola)",
    "Portuguese": r"(?:desculp\w+|sinto muito|infelizmente)\b|n[ãa]o (?:posso|consigo|podemos)\b[^.]{0,60}"
    r"(?:ajud|descrev|identific|analis|fornec|responder)|n[ãa]o vejo (?:nenhuma|a|uma) imagem"
    r"|por favor,? (?:forne|envi|carreg|anex)\w+[^.]{0,20}imagem",
    "French": r"(?:je suis (?:vraiment )?d[ée]sol[ée]e?|d[ée]sol[ée]e?|malheureusement|je regrette)\b"
    r"|je ne (?:peux|suis|puis)\b[^.]{0,60}(?:aider|d[ée]crire|identifier|analyser|fournir|r[ée]pondre"
    r"|mesure)"
    r"|je ne vois (?:aucune|pas)[^.]{0,20}image|veuillez (?:fournir|t[ée]l[ée]charger|envoyer"
    r"|joindre)[^.]{0,20}image"
    r"|cette (?:demande|image)[^.]{0,30}(?:enfreint|viole)",
    "German": r"(?:es tut mir (?:sehr )?leid|tut mir leid|leider|entschuldig\w+|ich bedaure)\b"
    r"|(?:ich (?:kann|darf|werde)|(?:dabei|damit|das|dies\w*[^.]{0,20}) (?:kann|darf"
    r"|werde) ich)\b[^.]{0,60}(?:nicht|keine)\b"
    r"[^.]{0,60}(?:helfen|beschreiben|identifizieren|beantworten|unterstützen)"
    r"|ich sehe kein(?:e|en)? (?:bild|foto)|bitte (?:laden|senden|stellen|schicken|fügen)[^.]{0,30}bild"
    r"|diese anfrage[^.]{0,30}verst(?:ö|oe)(?:ß|ss)t",
    "Italian": r"(?:mi dispiace|purtroppo|spiacente)\b|non posso\b[^.]{0,60}(?:aiut|descriv|identific"
    r"|fornir|rispond)"
    r"|non vedo (?:alcuna|nessuna|l[’'])[^.]{0,10}immagine|(?:per favore|si prega di)[^.]{0,20}(?:caric"
    r"|forni|invi)[^.]{0,20}immagine",
    "Russian": r"(?:извините|простите|к сожалению|мне (?:очень )?жаль|прошу прощения)|(?:я )?не (?:могу"
    r"|смогу)[^.]{0,40}"
    r"(?:опис|помо|ответ|предостав|распозна|идентиф)|я не (?:могу|смогу)|я не вижу[^.]{0,20}(?:изображен"
    r"|картин|фото)"
    r"|пожалуйста,? (?:загрузите|предоставьте|отправьте)[^.]{0,20}(?:изображен|картин|фото)"
    r"|этот запрос[^.]{0,20}наруша",
    "Dutch": r"(?:het spijt me|helaas|sorry,? (?:maar )?ik)\b|ik kan\b[^.]{0,50}niet (?:beschrijven"
    r"|helpen|identificeren)|ik zie geen afbeelding",
    "Polish": r"(?:przykro mi|niestety|przepraszam)\b|nie mogę (?:opisa|pomóc|zidentyfik|odpowiedzie)"
    r"|nie widzę[^.]{0,20}(?:obraz|zdję)",
    "Turkish": r"(?:üzgünüm|maalesef|özür dilerim)|[^.]{0,50}(?:tanımlayamam|açıklayamam|yardımcı olamam"
    r"|göremiyorum)",
    "Arabic": r"(?:عذر[اً]+|آسف|أعتذر|للأسف|المعذرة)|لا (?:أستطيع|يمكنني)[^.]{0,30}(?:وصف|مساعد|تقديم"
    r"|تحديد)|لا أرى[^.]{0,10}صور",
    "Hindi": r"(?:क्षमा करें|मुझे खेद है|माफ़ करें|माफ कीजिए|खेद है)",
    "Vietnamese": r"(?:xin lỗi|rất tiếc)|tôi không thể[^.]{0,30}(?:mô tả|giúp|xác định|trả lời)",
    "Indonesian": r"maaf,? (?:tetapi |namun )?(?:saya|kami)|saya tidak (?:dapat"
    r"|bisa)[^.]{0,30}(?:mendeskripsi|membantu|menjawab)",
    "Ukrainian": r"(?:на жаль|вибачте|перепрошую)|я не можу[^.]{0,40}(?:опис|допомог|відпов)",
    "Czech": r"(?:omlouvám se|bohužel|je mi líto)|nemohu (?:popsat|pomoci|identifikovat)",
    "Swedish": r"(?:tyvärr|jag är ledsen|förlåt)\b|jag kan (?:tyvärr )?inte (?:beskriva|hjälpa)",
    "Norwegian and Danish": r"(?:beklager|desværre|dessverre|undskyld)\b|jeg kan (?:ikke"
    r"|desværre ikke) (?:beskrive|hjælpe|hjelpe)",
    "Finnish": r"(?:valitettavasti|pahoittelen|anteeksi)\b|en voi (?:kuvata|kuvailla|auttaa)",
    "Hungarian": r"(?:sajnálom|sajnos|elnézést)\b|nem tudom (?:leírni|segíteni)",
    "Romanian": r"(?:îmi pare rău|din păcate)\b|nu pot (?:descrie|ajuta)",
    "Greek": r"(?:λυπάμαι|δυστυχώς|συγγνώμη)|δεν μπορώ να (?:περιγράψω|βοηθήσω)",
    "Thai": r"(?:ขออภัย|ขอโทษ)|(?:ฉัน|ผม|ดิฉัน)?ไม่สามารถ(?:อธิบาย|ช่วย|ระบุ)",
    "Hebrew": r"(?:מצטער(?:ת)?|סליחה|לצערי)|אני לא (?:יכול|יכולה) (?:לתאר|לעזור)",
    "Persian": r"(?:متأسفم|متاسفم|ببخشید|پوزش)|نمی‌?توانم[^.]{0,30}(?:توصیف|کمک)",
}
_OTHERS = re.compile(rf"^\W*(?:{'|'.join(_BY_LANGUAGE.values())})", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Return True if a captioner refused instead of describing the image, or did not see it."""
    stripped = text.strip()
    return bool(_ENGLISH.search(stripped) or _OTHERS.match(stripped))

"""Tests of refusals of captioners, in several languages, and of descriptions that sound alike."""

from __future__ import annotations

import pytest

from data_tools.captions.refusals import is_refusal
from tests.data_tools.captions import answer_samples

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m really sorry, but I can’t describe this image.",
    "I am so sorry, I cannot identify people.",
    "I'm afraid I can't assist with that request.",
    "Sorry, I am not able to see it.",
    "Unfortunately, I can't provide a caption for this image.",
    "I cannot describe people.",
    "I can't assist with identifying individuals.",
    "I won't be able to help with this request.",
    "I apologize, but this request goes against my guidelines.",
    "My apologies, but I must decline.",
    "I must decline to describe this content.",
    "I don't feel comfortable describing this image.",
    "I do not have the ability to view images.",
    "As an AI, I see nothing.",
    "As a large language model, I cannot view images.",
    "It's not possible for me to describe this.",
    "This image violates our content policy.",
    "Unable to assist.",
    "There is a picture. I’m unable to identify the person.",
    "抱歉，我无法描述这张图片。",
    "对不起，我不能帮助您完成这个请求。",
    "我无法识别图片中的人物。",
    "申し訳ありませんが、この画像を説明できません。",
    "すみませんが、お手伝いできません。",
    "죄송하지만 이 이미지를 설명할 수 없습니다.",
    "Lo siento, pero no puedo describir esta imagen.",
    "No puedo ayudar con esa solicitud.",
    "Lamentablemente, no puedo identificar a las personas.",
    "Desculpe, não posso descrever esta imagem.",
    "Je suis désolé, mais je ne peux pas décrire cette image.",
    "Je ne peux pas aider à identifier des personnes.",
    "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.",
    "Ich kann bei dieser Anfrage nicht helfen.",
    "Mi dispiace, non posso descrivere questa immagine.",
    "Извините, я не могу описать это изображение.",
    "К сожалению, я не могу помочь.",
]
DESCRIPTIONS = [
    'a sign that says "I\'m sorry"',
    "a man who cannot swim",
    "an AI as an art form",
    "",
    "a dog",
    "A dog sits on the lawn. However, it looks at the sky.",
    "A woman looks sad. Unfortunately, it is raining.",
    "A child apologizes to a friend.",
    "The text reads: I can't believe it.",
    "A poster about help for people who are unable to walk",
    "a sorry looking dog in the rain",
    "This image shows a policy document on a desk.",
    "一只狗坐在草地上。",
    "草の上に座っている犬",
    "Un perro que no puede saltar la valla",
    "Ein Hund, der nicht schwimmen kann",
    "un chien désolé sous la pluie",
    "a note: sorry we are closed",
]


@pytest.mark.parametrize("text", [*REFUSALS, *answer_samples.REFUSALS])
def test_a_refusal_is_recognized(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", [*DESCRIPTIONS, *answer_samples.DESCRIPTIONS, *answer_samples.WRAPPED.values()]
)
def test_a_description_is_not_a_refusal(text: str) -> None:
    assert not is_refusal(text)

"""The modality of a series, from its description and contrast tags. Data, not code."""

import re

from brats_seg.clinic.series import Series

_NOT_USED = (
    (r"\b(loc|localizer|localiser|scout|survey|3[ -]?plane|smartbrain|plan)", "localizer"),
    (r"\b(dwi|adc|dti|diff\w*|trace\w*|b ?1000|fa|colfa|tensor|resolve)\b", "diffusion"),
    (r"\b(perf\w*|dsc|dce|asl|pcasl|rcbv|cbv|cbf|mtt|ttp|tmax|pwi)\b", "perfusion"),
    (r"t2 ?\*|\b(swi|swan|t2 ?star|t2s|hemo\w*|mag|pha|minip|venbold)\b", "susceptibility"),
    (r"\b(tof|mra|mrv|angio\w*|inhance)\b", "angiography"),
    (r"\b(bold|fmri|rest\w*|task|mrs|svs|csi|press|fieldmap|field map|b0)\b", "function or spectroscopy"),
    (r"\b(sub|subtraction|mip|phoenix\w*|report|screen\w*|cal\w*|asset)\b", "derived"),
    (r"\b(pd|proton|dual)\b", "proton density"),
)
"""Words in descriptions of other series than the four modalities -> the kind of series. The first match
counts.
"""
_FLAIR = r"flair|dark ?fluid|tirm|\bfla\b"
_T1 = r"t1|mp ?rage|bravo|spgr|\btfe\b|\btfl|vibe|\bvolpre"
_T2 = r"t2"
_AGENT = r"(?:gd|gad\w*|km|ce|mdc|[ck]ontrast\w*|enhance\w*)"
_NO = r"(?:no|non|not|without|w ?o|w ?out|ohne|keine?|sans|sin|senza)"
_BEFORE = r"(?:pre|vor|before|avant|prima)"
_NO_AGENT = rf"\b(?:{_NO}|{_BEFORE}|o) ?(?:iv )?(?:{_AGENT}|\+ ?c)\b|\b{_AGENT} (?:free|frei)\b"
"""An agent that was not given, such as "ohne KM": these words do not count as words for contrast agent."""
_OTHER_THAN_AGENT = r"(?:\d|fs|fat|sat|spa?ir|mtc?\b|moco|motion|flow|fc|gap|filter|dist?)"
_WITHOUT_CONTRAST = (
    rf"\b(?:nati[vf]e?|t1n|unenhanced|precon|{_BEFORE}(?! ?op)|{_NO}(?! ?{_OTHER_THAN_AGENT}))\b|\bvolpre"
)
_WITH_CONTRAST = rf"\b(?:{_AGENT}|post(?! ?op|erior)\w*|t1c|t1ce|t1gd)\b|\+ ?(?:c|gd|k?m)\b|\bc ?\+"
_TAG_OF_NONE = rf"(?:{_NO}|none|nil|0|n a|false)\b"
"""The start of a contrast tag which states that no agent was given."""
CONTRADICTION = "its description and contrast tag speak both for and against contrast agent"
"""The reason why a T1 series is neither `t1n` nor `t1c`."""


def modality_of(series: Series) -> tuple[str | None, str]:
    """The modality of a series, and the reason in words.

    For a T1 series whose description does not mention contrast agent, the contrast tag decides. A T1 series
    whose description and tag speak both for and against contrast agent has no modality; the reason is
    `CONTRADICTION`.

    Returns:
        A name of `case.MODALITIES`, or None; and the reason.
    """
    text = _plain(series.description)
    if "LOCALIZER" in series.image_type:
        return None, "localizer"
    for pattern, what in _NOT_USED:
        if re.search(pattern, text):
            return None, what
    if "DERIVED" in series.image_type and "SECONDARY" in series.image_type and not text:
        return None, "derived"
    if re.search(_FLAIR, text) and not re.search(r"\bt1", text):
        return "t2f", "description"
    if re.search(_T2, text):
        return "t2w", "description"
    if not re.search(_T1, text):
        return None, "no modality in the description"
    tag = _plain(series.contrast_agent)
    tag_of_none = bool(re.match(_TAG_OF_NONE, tag))
    without = bool(re.search(f"{_NO_AGENT}|{_WITHOUT_CONTRAST}", text))
    given = bool(re.search(_WITH_CONTRAST, re.sub(_NO_AGENT, " ", text)))
    if (without or tag_of_none) and (given or (tag and not tag_of_none)):
        return None, CONTRADICTION
    if without or given:
        return ("t1c" if given else "t1n"), "description"
    if tag:
        return ("t1n" if tag_of_none else "t1c"), "contrast tag"
    return "t1n", "description, no contrast tag"


def _plain(text: str) -> str:
    """Small letters and digits, + and *; a space for each run of other characters."""
    return re.sub(r"[^a-z0-9+*]+", " ", text.lower()).strip()

"""Which modality a series is, by its description and contrast tags. Data, not code."""

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
"""Words of series that are none of the four modalities -> what they are. The first match counts."""
_FLAIR = r"flair|dark ?fluid|tirm|\bfla\b"
_T1 = r"t1|mp ?rage|bravo|spgr|\btfe\b|\btfl|vibe|\bvolpre"
_T2 = r"t2"
_WITH_CONTRAST = (
    r"\b(gd|gado?\w*|post\w*|ce|km|mdc|contrast|enhanced|t1c|t1ce|t1gd|with)\b|\+ ?(c|gd|k?m)\b|\bc ?\+"
)
_WITHOUT_CONTRAST = r"\b(pre|native|nativ|non ?contrast|no contrast|without|w o|wo|t1n|unenhanced)\b|\bvolpre"


def modality_of(series: Series) -> tuple[str | None, str]:
    """The modality that a series shows, and in words what told it.

    Words for and against contrast agent count before the contrast tags: some scanners keep the agent in all
    series that follow an injection.

    Returns:
        A name of `case.MODALITIES`, or None; and the reason.
    """
    text = re.sub(r"[^a-z0-9+*]+", " ", series.description.lower()).strip()
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
    if re.search(_WITHOUT_CONTRAST, text):
        return "t1n", "description"
    if re.search(_WITH_CONTRAST, text):
        return "t1c", "description"
    if series.contrast_agent and series.contrast_agent.lower() not in ("no", "none"):
        return "t1c", "contrast tag"
    return "t1n", "description, no contrast tag"

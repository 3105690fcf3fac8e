"""Put the tables of `layers_and_methods.py` into docs/evidence/layers.md, from the records in docs/evidence/maps.

    python docs/evidence/layers_page.py
"""
import json
from pathlib import Path
from typing import Any

from timm_icasc.runs.tables import replace_between

HERE = Path(__file__).parent

MARKS = 'tables'

NETWORKS = {
    'voc2007_lite0': 'EfficientNet-Lite0, VOC 2007, 224 pixels',
    'caltech101_lite0': 'EfficientNet-Lite0, Caltech-101, 112 pixels',
    'cifar20_resnetv2': 'ResNetV2, CIFAR-100',
    'cifar20_densenet': 'DenseNet, CIFAR-100',
    'cifar20_mobilenetv3': 'MobileNetV3, CIFAR-100',
    'cifar20_convnext': 'ConvNeXt, CIFAR-100',
    'cifar20_vit': 'ViT, class token, CIFAR-100',
    'cifar20_swin': 'Swin, CIFAR-100',
}

COLUMNS = ('silent', 'own drop', 'specificity', 'overlap', 'pointing', 'energy')


def cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return '' if value is None else f'{value:.1%}' if column == 'silent' else f'{value:.2f}'


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; a layer is named in the first of its rows."""
    columns = [c for c in COLUMNS if any(row.get(c) is not None for row in rows)]
    lines = [f'| layer | below 0 | map | {" | ".join(columns)} |', '|' + '---|' * (3 + len(columns))]
    before = None
    for row in rows:
        is_first, before = row['layer'] not in (before, '-'), row['layer']
        layer = f"`{row['layer']}`" if is_first else ''
        below = f"{row['below 0']:.0%}" if is_first and row.get('below 0') is not None else ''
        method = row['method'] if row['layer'] == '-' else f"`{row['method']}`"
        lines.append(f'| {" | ".join([layer, below, method, *(cell(row, c) for c in columns)])} |')
    return '\n'.join(lines)


def tables() -> str:
    parts = []
    for place in ('last', 'inner'):
        parts.append(f'## {place.capitalize()} layer')
        for name, title in NETWORKS.items():
            file = HERE / 'maps' / f'{name}_{place}.json'
            if file.exists():
                record = json.loads(file.read_text())
                parts += [f"{title}, {record['images']} images:", table(record['rows'])]
    return '\n\n'.join(parts)


if __name__ == '__main__':
    replace_between(HERE / 'layers.md', MARKS, tables())

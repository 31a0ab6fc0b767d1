"""The look of the page, light or dark as the reader's system has it."""

STYLE = """
:root{--paper:#f6f7f9;--card:#fff;--ink:#1c2530;--soft:#5d6b7a;--line:#e3e6ea;--accent:#2a6fbb}
@media (prefers-color-scheme:dark){:root{--paper:#12161b;--card:#1b2129;--ink:#e8ecf1;--soft:#9aa7b5;--line:#2c353f;
--accent:#6aa9ea}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 40px}
h1{margin:0;font-size:28px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{margin:0 0 8px;font-size:16px}
header p{margin:4px 0 22px;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin-bottom:14px}
.tile,figure,section:not(.tiles):not(.cards){background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:16px 18px}
.tile b{display:block;font-size:30px;line-height:1.15;color:var(--accent);font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13.5px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px}
figure{margin:0;padding:16px 18px;min-width:0}
figcaption{color:var(--soft);font-size:13px;margin-top:6px}
section:not(.tiles):not(.cards){margin-top:14px;padding:16px 18px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11.5px;font-family:inherit}
svg .legend{fill:var(--ink);font-size:12px}
@media (max-width:600px){svg text,svg .legend{font-size:13px}}
svg .grid{stroke:var(--line);stroke-width:1}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:5px 12px;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;font-size:13px}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody tr:last-child td{border-bottom:0}
.mean td{font-weight:600}
dl{display:grid;grid-template-columns:minmax(120px,200px) 1fr;gap:4px 16px;margin:0}
dt{font-weight:600}
dd{margin:0;color:var(--soft)}
section p{margin:10px 0 0;color:var(--soft)}
footer{margin-top:18px;color:var(--soft);font-size:12.5px;overflow-wrap:anywhere}
"""

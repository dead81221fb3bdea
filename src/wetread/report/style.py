"""Style of the report: light and dark by the reader's setting, and print."""

STYLE = """
:root{font-size:15px;color-scheme:light dark;--back:#f5f6f8;--card:#fff;--ink:#15202b;--soft:#5b6875;
--line:#dde2e8;--accent:#0b6bcb;--warn:#8a4b00;--warnback:#fff4e0;--warnline:#f0c987}
@media (prefers-color-scheme:dark){
:root{--back:#0d1116;--card:#151b22;--ink:#e8edf2;--soft:#97a4b1;--line:#2a333d;--accent:#5aa9ff;
--warn:#ffce85;--warnback:#2b210f;--warnline:#5f4617}
}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
.banner{background:var(--warnback);color:var(--warn);border-bottom:1px solid var(--warnline);
padding:.5rem 1rem;text-align:center;font-weight:600}
main{max-width:1180px;margin:0 auto;padding:1.5rem 1.25rem 3rem}
header{display:flex;flex-wrap:wrap;gap:.25rem 2rem;justify-content:space-between;
align-items:baseline;margin-bottom:1.25rem}
h1{flex:1 1 auto;font-size:1.7rem;line-height:1.2;margin:0;font-weight:650;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:2rem 0 .6rem;font-weight:650}
h3{flex:1 1 auto;font-size:1rem;margin:0;font-weight:650;display:flex;gap:.55rem;align-items:center}
.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;
margin-bottom:1rem}
.scroll{overflow-x:auto;padding:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .8rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td,tr:last-child th{border-bottom:0}
thead th{color:var(--soft);font-weight:600;font-size:.85rem}
.left{text-align:left}
.dot{display:inline-block;width:.75rem;height:.75rem;border-radius:3px;flex:none}
.finding header{margin:0 0 .7rem}
.views{display:grid;grid-template-columns:repeat(4,1fr);gap:.6rem}
.views.three{grid-template-columns:repeat(3,1fr)}
figure{margin:0}
figure img{width:100%;height:auto;display:block;border-radius:6px;background:#000}
figcaption{font-size:.8rem;color:var(--soft);margin-top:.25rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
ul.notices{list-style:none;margin:0;padding:0}
ul.notices li{padding:.35rem 0;border-bottom:1px solid var(--line)}
ul.notices li:last-child{border-bottom:0}
.columns{display:grid;grid-template-columns:3fr 2fr;gap:1rem}
.bar{height:.55rem;border-radius:3px;background:var(--accent);min-width:2px;display:block}
.times td{padding:.25rem .6rem;border:0}
.times td:nth-child(2){width:60%}
footer{color:var(--soft);font-size:.85rem;margin-top:2rem}
@media (max-width:800px){
.views,.views.three{grid-template-columns:repeat(2,1fr)}
.columns{grid-template-columns:1fr}
}
@media print{
:root{font-size:9.5px;color-scheme:light;--back:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;
--accent:#345;--warn:#000;--warnback:#fff;--warnline:#000}
main{max-width:none;padding:0}
th,td{padding:.4rem .5rem}
thead th{white-space:normal}
h2{break-after:avoid}
.card{break-inside:avoid;border-radius:0}
.bar,.dot{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.banner{border:1px solid #000;margin-bottom:1rem}
.views{grid-template-columns:repeat(4,1fr)}
}
"""

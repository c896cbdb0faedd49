// The style sheet of a report.
#pragma once

namespace uniattn {

// Okabe and Ito's colours: told apart by most eyes, on light and on dark ground.
inline constexpr const char* kStyle = R"(
:root{--ink:#1c2024;--soft:#667079;--line:#e3e6e9;--ground:#fff;--card:#fafbfc;
--run-0:#0072b2;--run-1:#d55e00;--run-2:#009e73;--run-3:#cc79a7;--run-4:#e69f00;--run-5:#56b4e9;--run-6:#7a5195;--run-7:#8c8c00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#98a2ab;--line:#343b41;--ground:#15181b;--card:#1c2024;
--run-0:#4aa8e0;--run-1:#f08a4b;--run-2:#2fc79b;--run-6:#b48ad6;--run-7:#c2c24a}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:1rem 0 .2rem}
table{border-collapse:collapse;font-size:.87rem;display:block;overflow-x:auto;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}.summary td{white-space:nowrap}
th{font-weight:600}th:first-child,td.sample,tr>th[scope=row]{text-align:left}thead th{color:var(--soft);font-weight:500}
th small{display:block;color:var(--soft);font-weight:400}.default{color:var(--soft)}td.sample{white-space:pre-wrap;max-width:60rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:1rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5rem}
svg{width:100%;height:auto;display:block}.title{font-size:14px;font-weight:600;fill:var(--ink)}
.tick,.label{font-size:11px;fill:var(--soft)}.grid{stroke:var(--line)}
.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.dashed{stroke-dasharray:5 4;opacity:.7}
.legend{margin:.8rem 0}.swatch,.legend>span[class^=mode]{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .4em 0 .6em}
.curve.run-0{stroke:var(--run-0)}.curve.run-1{stroke:var(--run-1)}.curve.run-2{stroke:var(--run-2)}.curve.run-3{stroke:var(--run-3)}
.curve.run-4{stroke:var(--run-4)}.curve.run-5{stroke:var(--run-5)}.curve.run-6{stroke:var(--run-6)}.curve.run-7{stroke:var(--run-7)}
.dot.run-0{fill:var(--run-0)}.dot.run-1{fill:var(--run-1)}.dot.run-2{fill:var(--run-2)}.dot.run-3{fill:var(--run-3)}
.dot.run-4{fill:var(--run-4)}.dot.run-5{fill:var(--run-5)}.dot.run-6{fill:var(--run-6)}.dot.run-7{fill:var(--run-7)}
.swatch.run-0{background:var(--run-0)}.swatch.run-1{background:var(--run-1)}.swatch.run-2{background:var(--run-2)}
.swatch.run-3{background:var(--run-3)}.swatch.run-4{background:var(--run-4)}.swatch.run-5{background:var(--run-5)}
.swatch.run-6{background:var(--run-6)}.swatch.run-7{background:var(--run-7)}
.mode-full{fill:#9db4c8;background:#9db4c8}.mode-share_probs{fill:#f3c98b;background:#f3c98b}.mode-share_kv{fill:#a9d6b8;background:#a9d6b8}
.mode-linear{fill:#d9b8d6;background:#d9b8d6}.mode-skip{fill:#d4d4d4;background:#d4d4d4}.plan .tick{fill:#1c2024;font-size:10px}
.arc{fill:none;stroke:var(--soft);stroke-width:1.3}summary{cursor:pointer;margin:.5rem 0}
)";

}  // namespace uniattn

"""What the gallery looks like and does: its style sheet and its program. Both stand in the page itself."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--dim:#5d6670;--page:#f4f2ee;--card:#fff;--rule:#dcd8d0;--accent:#2f6f8f;
--good:#2f7d4f;--fair:#8f6a12;--poor:#b03a2e}
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e1;--dim:#a2a8ae;--page:#17191c;--card:#212428;--rule:#363b41;
--accent:#7ebcd8;
--good:#74c794;--fair:#e0b654;--poor:#f08a7e}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
header{position:sticky;top:0;z-index:5;background:var(--page);border-bottom:1px solid var(--rule);
padding:.7rem clamp(1rem,4vw,3rem)}
h1{display:inline;font-size:1.25rem;margin:0 .8rem 0 0}.sum{display:inline;color:var(--dim);margin:0}
.bar{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin-top:.5rem}
.bar [role=group]{display:flex;flex-wrap:wrap;gap:.35rem}
button,select,input[type=search]{font:inherit;font-size:.9rem;color:inherit;background:var(--card);
border:1px solid var(--rule);
border-radius:.5rem;padding:.25rem .65rem}
button{cursor:pointer;border-radius:1rem}button b{font-weight:600;color:var(--dim)}
button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--card)}
button[aria-pressed=true] b{color:inherit}
label{font-size:.9rem;color:var(--dim)}
.note,footer{max-width:62rem;margin:1rem auto;padding:0 1rem;color:var(--dim);font-size:.92rem}
footer{padding-bottom:2rem}code{overflow-wrap:anywhere}kbd{border:1px solid var(--rule);border-radius:.3rem;padding:0 .35em}
main{max-width:62rem;margin:0 auto;padding:0 1rem;display:grid;gap:1.4rem}
article{background:var(--card);border:1px solid var(--rule);border-radius:.8rem;padding:1rem 1.2rem;
scroll-margin-top:calc(var(--head,7rem) + 1rem);content-visibility:auto;contain-intrinsic-size:auto 620px}
article:focus{outline:2px solid var(--accent);outline-offset:2px}article[hidden]{display:none}
h2{font-size:1.05rem;margin:0;overflow-wrap:anywhere}.where{margin:.1rem 0 .6rem;color:var(--dim);font-size:.82rem;
overflow-wrap:anywhere}
.status{font-size:.78rem;font-weight:500;color:var(--dim);border:1px solid var(--rule);border-radius:1rem;
padding:.05rem .55rem;
margin-left:.3rem;white-space:nowrap}
.status.restored{color:var(--good)}.status.failed{color:var(--poor)}
.warning{margin:.3rem 0;padding:.35rem .7rem;border-left:3px solid var(--fair);background:color-mix(in srgb,
var(--fair) 9%,transparent);
font-size:.9rem;overflow-wrap:anywhere}
.compare{position:relative;aspect-ratio:var(--ratio);width:min(100%,max(18rem,var(--width)));max-height:75vh;
max-width:100%;margin:.6rem auto;
background:var(--page);overflow:hidden;border-radius:.4rem;--at:50%}
.compare img{position:absolute;inset:0;width:100%;height:100%;object-fit:contain;user-select:none}
.compare .before{clip-path:inset(0 calc(100% - var(--at)) 0 0)}
.line{position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 4px #000a;
pointer-events:none}
.line::after{content:"";position:absolute;top:50%;left:50%;width:2.1rem;height:2.1rem;margin:-1.05rem;border-radius:50%;
background:#fffd;
box-shadow:0 0 5px #0008}
.compare input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize;touch-action:pan-y}
.compare:focus-within{outline:2px solid var(--accent);outline-offset:2px}
.tag{position:absolute;bottom:.5rem;padding:.1rem .55rem;border-radius:.3rem;background:#000a;color:#fff;font-size:.78rem;
pointer-events:none}
.tag.left{left:.5rem}.tag.right{right:.5rem}
@media screen{[data-only=after] .left,[data-only=before] .right{display:none}}
.faces{list-style:none;margin:.8rem 0 0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));
gap:.7rem}
.faces li{display:flex;gap:.5rem;align-items:center}.faces img{width:96px;height:96px;border-radius:.4rem;
background:var(--page)}
.faces p{margin:0}.number{font-size:.8rem;color:var(--dim)}.person{font-weight:600}
.verdict{font-weight:600;font-size:.9rem}.good{color:var(--good)}.fair{color:var(--fair)}.poor{color:var(--poor)}
dl{display:grid;grid-template-columns:auto auto;justify-content:start;gap:0 .6rem;margin:0;font-size:.85rem}dt{
color:var(--dim)}dd{margin:0;
font-variant-numeric:tabular-nums}
@media print{header{position:static}.bar,.note kbd,.compare input,.line,footer details{display:none}body,article{
background:#fff;color:#000}
main{display:block}article{break-inside:avoid;margin-bottom:1rem;content-visibility:visible}
.compare{display:grid;grid-template-columns:1fr 1fr;gap:.4rem;aspect-ratio:auto;max-height:none;width:100%}
.compare img{position:static;height:auto;max-height:9cm}.compare .before{clip-path:none;order:-1}.tag{position:static;
background:none;color:#000}}
"""

SCRIPT = """
(function(){
"use strict";
var list=document.getElementById("photos"),cards=[].slice.call(list.children),shown="all";
function unpack(card){
  if(card.unpacked)return;card.unpacked=true;
  var data=card.querySelector("script");if(!data)return;
  var pictures=JSON.parse(data.textContent);
  card.querySelectorAll("img[data-src]").forEach(function(i){i.src=pictures[i.dataset.src]});
  card.querySelectorAll("img[data-face]").forEach(function(i){i.src=pictures.faces[i.dataset.face][i.dataset.side]});
}
function pack(card){
  if(!card.unpacked)return;card.unpacked=false;
  card.querySelectorAll("img").forEach(function(i){i.removeAttribute("src")});
}
if("IntersectionObserver" in window){
  var near=new IntersectionObserver(function(seen){seen.forEach(function(s){s.isIntersecting?unpack(s.target):pack(s.target)})},
    {rootMargin:"1200px 0px"});
  cards.forEach(function(c){near.observe(c)});
}else cards.forEach(unpack);
window.addEventListener("beforeprint",function(){if(near)near.disconnect();cards.forEach(unpack)});
window.addEventListener("afterprint",function(){if(near)cards.forEach(function(c){near.observe(c)})});
function place(box,value){
  box.style.setProperty("--at",value+"%");
  box.dataset.only=value<10?"after":value>90?"before":"both";
}
list.addEventListener("input",function(e){if(e.target.type==="range")place(e.target.parentNode,e.target.value)});
function measure(){
  document.documentElement.style.setProperty("--head",document.querySelector("header").offsetHeight+"px");
}
measure();window.addEventListener("resize",measure);
function apply(){
  var text=document.getElementById("find").value.toLowerCase(),any=false;
  cards.forEach(function(c){
    var d=c.dataset,ok=(shown==="all"||(shown==="warned"?d.warned==="1":d.status===shown))&&d.name.indexOf(text)>=0;
    c.hidden=!ok;any=any||ok;
  });
  document.getElementById("none").hidden=any;
}
document.querySelectorAll("[data-filter]").forEach(function(b){b.addEventListener("click",function(){
  shown=b.dataset.filter;
  document.querySelectorAll("[data-filter]").forEach(function(o){o.setAttribute("aria-pressed",String(o===b))});
  apply();
})});
document.getElementById("find").addEventListener("input",apply);
document.getElementById("sort").addEventListener("change",function(e){
  var by=e.target.value,sign=by==="urgency"?-1:1;
  cards.sort(function(a,b){
    var x=a.dataset[by],y=b.dataset[by];
    return (by==="name"?x.localeCompare(y):sign*(x-y))||a.dataset.name.localeCompare(b.dataset.name);
  });
  cards.forEach(function(c){list.appendChild(c)});
});
function visible(){return cards.filter(function(c){return !c.hidden})}
function current(){
  var open=visible(),inside=document.activeElement&&document.activeElement.closest("article");
  if(inside&&open.indexOf(inside)>=0)return open.indexOf(inside);
  return -1;
}
function typing(e){
  return e.ctrlKey||e.metaKey||e.altKey||/^(SELECT|TEXTAREA)$/.test(e.target.tagName)||e.target.type==="search";
}
document.addEventListener("keydown",function(e){
  if(typing(e))return;
  var open=visible(),at=current(),key=e.key.toLowerCase();
  if(key==="n"||key==="p"){
    var next=open[Math.max(0,Math.min(open.length-1,at+(key==="n"?1:-1)))];if(!next)return;
    unpack(next);next.scrollIntoView({block:"start"});(next.querySelector("input")||next).focus({preventScroll:true});e.preventDefault();
  }else if(key==="b"&&at>=0&&!e.repeat){
    var box=open[at].querySelector(".compare");if(box)place(box,100);
  }
});
document.addEventListener("keyup",function(e){
  if(e.key.toLowerCase()==="b"&&current()>=0){
    var box=visible()[current()].querySelector(".compare");
    if(box)place(box,box.querySelector("input").value);
  }
});
})();
"""

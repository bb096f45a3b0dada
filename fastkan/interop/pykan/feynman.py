"""The equations of the Feynman Symbolic Regression Database (Udrescu & Tegmark, 2020), as functions for training."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastkan_kernels import plain

from ...symbolic.variables import values_of

# The equations, in the format ``name | variables | formula | ranges``. The ranges are one range for each variable, or a
# single range for all variables. The first equation has the number 0.
EQUATIONS = """
test | x y | (x + y)*sin(exp(2*y)) | -1:1
I.6.20a | theta | sqrt(2)*exp(-theta**2/2)/(2*sqrt(pi)) | -3:3
I.6.20 | theta sigma | sqrt(2)*exp(-theta**2/(2*sigma**2))/(2*sqrt(pi)*sqrt(sigma**2)) | -1:1 0.5:2
I.6.20b | theta theta1 sigma | sqrt(2)*exp(-(theta - theta1)**2/(2*sigma**2))/(2*sqrt(pi)*sqrt(sigma**2)) |
    -1.5:1.5 -1.5:1.5 0.5:2
I.8.4 | x1 x2 y1 y2 | sqrt((-x1 + x2)**2 + (-y1 + y2)**2) | -1:1
I.9.18 | G m1 m2 x1 x2 y1 y2 z1 z2 | G*m1*m2/((-x1 + x2)**2 + (-y1 + y2)**2 + (-z1 + z2)**2) |
    -1:1 -1:1 -1:1 -1:-0.5 0.5:1 -1:-0.5 0.5:1 -1:-0.5 0.5:1
I.10.7 | m0 v c | m0/sqrt(1 - v**2/c**2) | 0:1 0:1 1:2
I.11.19 | x1 y1 x2 y2 x3 y3 | x1*y1 + x2*y2 + x3*y3 | -1:1
I.12.1 | mu N_n | N_n*mu | -1:1
I.12.2 | q1 q2 epsilon r | q1*q2/(4*pi*epsilon*r**2) | -1:1 -1:1 0.5:2 0.5:2
I.12.4 | q1 epsilon r | q1/(4*pi*epsilon*r**2) | -1:1 0.5:2 0.5:2
I.12.5 | q2 E_f | E_f*q2 | -1:1
I.12.11 | q E_f B v theta | q*(B*v*sin(theta) + E_f) | -1:1 -1:1 -1:1 -1:1 0:2pi
I.13.4 | m u v w | 0.5*m*(u**2 + v**2 + w**2) | -1:1
I.13.12 | G m1 m2 r1 r2 | G*m1*m2*(1/r2 - 1/r1) | 0:1 0:1 0:1 0.5:2 0.5:2
I.14.3 | m g z | g*m*z | 0:1 0:1 -1:1
I.14.4 | k_s x | 0.5*k_s*x**2 | 0:1 -1:1
I.15.3x | x u t c | (-t*u + x)/sqrt(1 - u**2/c**2) | -1:1 -1:1 -1:1 1:2
I.15.3t | t u x c | (t - u*x/c**2)/sqrt(1 - u**2/c**2) | -1:1 -1:1 -1:1 1:2
I.15.10 | m0 v c | m0*v/sqrt(1 - v**2/c**2) | -1:1 -0.9:0.9 1.1:2
I.16.6 | u v c | (u + v)/(1 + u*v/c**2) | -0.8:0.8 -0.8:0.8 1:2
I.18.4 | m1 r1 m2 r2 | (m1*r1 + m2*r2)/(m1 + m2) | 0.5:1 -1:1 0.5:1 -1:1
I.18.12 | r F theta | F*r*sin(theta) | -1:1 -1:1 0:2pi
I.18.16 | m r v theta | m*r*v*sin(theta) | -1:1 -1:1 -1:1 0:2pi
I.24.6 | m omega omega_0 x | 0.25*m*x**2*(omega**2 + omega_0**2) | 0:1 -1:1 -1:1 -1:1
I.25.13 | q C | q/C | -1:1 0.5:2
I.26.2 | n theta2 | asin(n*sin(theta2)) | 0:0.99 0:2pi
I.27.6 | d1 d2 n | 1/(n/d2 + 1/d1) | 0.5:2 1:2 0.5:2
I.29.4 | omega c | omega/c | 0:1 0.5:2
I.29.16 | x1 x2 theta1 theta2 | sqrt(x1**2 - 2*x1*x2*cos(theta1 - theta2) + x2**2) | -1:1 -1:1 0:2pi 0:2pi
I.30.3 | I_0 n theta | I_0*sin(n*theta/2)**2/sin(theta/2)**2 | 0:1 0:4 1.25664:5.02655
I.30.5 | lambda n d | asin(lambda/(d*n)) | -1:1 1:1.5 1:1.5
I.32.5 | q a epsilon c | a**2*q**2/(c**3*epsilon) | -1:1 -1:1 0.5:2 0.5:2
I.32.17 | epsilon c E_f r omega omega_0 | 4*pi*E_f**2*c*epsilon*omega**4*r**2/(3*(omega**2 - omega_0**2)**2) |
    0:1 0:1 -1:1 0:1 0:1 1:2
I.34.8 | q V B p | B*V*q/p | -1:1 -1:1 -1:1 0.5:2
I.34.10 | omega_0 v c | omega_0/(1 - v/c) | 0:1 0:0.9 1.1:2
I.34.14 | omega_0 v c | omega_0*(1 + v/c)/sqrt(1 - v**2/c**2) | 0:1 -0.9:0.9 1.1:2
I.34.27 | hbar omega | hbar*omega | -1:1
I.37.4 | I_1 I_2 delta | I_1 + I_2 + 2*sqrt(I_1*I_2)*cos(delta) | 0.1:1 0.1:1 0:2pi
I.38.12 | epsilon hbar m q | 4*pi*epsilon*hbar**2/(m*q**2) | 0:1 0:1 0.5:2 0.5:2
I.39.10 | p_F V | 1.5*V*p_F | 0:1
I.39.11 | gamma p_F V | V*p_F/(gamma - 1) | 1.5:3 0:1 0:1
I.39.22 | n k_b T V | T*k_b*n/V | 0:1 0:1 0:1 0.5:2
I.40.1 | n_0 m g x k_b T | n_0*exp(-g*m*x/(T*k_b)) | 0:1 -1:1 -1:1 -1:1 1:2 1:2
I.41.16 | hbar omega c k_b T | hbar*omega**3/(pi**2*c**2*(exp(hbar*omega/(T*k_b)) - 1)) | 0.5:1 0.5:1 0.5:2 0.5:2 0.5:2
I.43.16 | mu q V_e d | V_e*mu*q/d | 0:1 0:1 0:1 0.5:2
I.43.31 | mu k_b T | T*k_b*mu | 0:1
I.43.43 | gamma k_b v A | k_b*v/(A*(gamma - 1)) | 1.5:3 0:1 0:1 0.5:2
I.44.4 | n k_b T V_1 V_2 | T*k_b*n*log(V_2/V_1) | 0:1 0:1 0:1 0.5:2 0.5:2
I.47.23 | gamma p rho | sqrt(gamma*p/rho) | 0.1:1 0.1:1 0.5:2
I.48.20 | m v c | c**2*m/sqrt(1 - v**2/c**2) | 0:1 -0.9:0.9 1.1:2
I.50.26 | x_1 alpha omega t | x_1*(alpha*cos(omega*t)**2 + cos(omega*t)) | 0:1 0:1 0:2pi 0:1
II.2.42 | kappa T_1 T_2 A d | A*kappa*(-T_1 + T_2)/d | 0:1 0:1 0:1 0:1 0.5:2
II.3.24 | P r | P/(4*pi*r**2) | 0:1 0.5:2
II.4.23 | q epsilon r | q/(4*pi*epsilon*r) | 0:1 0.5:2 0.5:2
II.6.11 | epsilon p_d theta r | p_d*cos(theta)/(4*pi*epsilon*r**2) | 0.5:2 0:1 0:2pi 0.5:2
II.6.15a | epsilon p_d z x y r | 3*p_d*z*sqrt(x**2 + y**2)/(4*pi*epsilon*r**5) | 0.5:2 0:1 0:1 0:1 0:1 0.5:2
II.6.15b | epsilon p_d r theta | 3*p_d*sin(theta)*cos(theta)/(4*pi*epsilon*r**3) | 0.5:2 0:1 0.5:2 0:2pi
II.8.7 | q epsilon d | 0.15*q**2/(pi*d*epsilon) | 0:1 0.5:2 0.5:2
II.8.31 | epsilon E_f | 0.5*E_f**2*epsilon | 0:1
I.10.9 | sigma epsilon chi | sigma/(epsilon*(chi + 1)) | 0:1 0.5:2 0:1
II.11.3 | q E_f m omega_o omega | E_f*q/(m*(-omega**2 + omega_o**2)) | 0:1 0:1 0.5:2 1.5:3 0:1
II.11.17 | n_0 p_d E_f theta k_b T | n_0*(E_f*p_d*cos(theta)/(T*k_b) + 1) | 0:1 -1:1 -1:1 0:2pi 0.5:2 0.5:2
II.11.20 | n p_d E_f k_b T | E_f*n*p_d**2/(3*T*k_b) | 0:1 0:1 0:1 0.5:2 0.5:2
II.11.27 | n alpha epsilon E_f | E_f*alpha*epsilon*n/(-alpha*n/3 + 1) | 0:1 0:2 0:1 0:1
II.11.28 | n alpha | alpha*n/(-alpha*n/3 + 1) + 1 | 0:1 0:2
II.13.17 | epsilon c l r | l/(2*pi*c**2*epsilon*r) | 0.5:2 0.5:2 0:1 0.5:2
II.13.23 | rho v c | rho/sqrt(1 - v**2/c**2) | 0:1 0:1 1:2
II.13.34 | rho v c | rho*v/sqrt(1 - v**2/c**2) | 0:1 0:1 1:2
II.15.4 | mu_M B theta | -B*mu_M*cos(theta) | 0:1 0:1 0:2pi
II.15.5 | p_d E_f theta | -E_f*p_d*cos(theta) | 0:1 0:1 0:2pi
II.21.32 | q epsilon r v c | q/(4*pi*epsilon*r*(1 - v/c)) | 0:1 0.5:2 0.5:2 0:1 1:2
II.24.17 | omega c d | sqrt(-pi**2/d**2 + omega**2/c**2) | 1:1.5 0.75:1 pi:4.71239
II.27.16 | epsilon c E_f | E_f**2*c*epsilon | 0:1 0:1 -1:1
II.27.18 | epsilon E_f | E_f**2*epsilon | 0:1 -1:1
II.34.2a | q v r | q*v/(2*pi*r) | 0:1 0:1 0.5:2
II.34.2 | q v r | q*r*v/2 | 0:1
II.34.11 | g q B m | B*g*q/(2*m) | 0:1 0:1 0:1 0.5:2
II.34.29a | q h m | h*q/(4*pi*m) | 0:1 0:1 0.5:2
II.34.29b | g mu B J hbar | B*J*g*mu/hbar | 0:1 0:1 0:1 0:1 0.5:2
II.35.18 | n0 mu B k_b T | n0/(exp(B*mu/(T*k_b)) + exp(-B*mu/(T*k_b))) | 0:1 0:1 0:1 0.5:2 0.5:2
II.35.21 | n mu B k_b T | mu*n*tanh(B*mu/(T*k_b)) | 0:1 0:1 0:1 0.5:2 0.5:2
II.36.38 | mu B k_b T alpha M epsilon c | B*mu/(T*k_b) + M*alpha*mu/(T*c**2*epsilon*k_b) |
    0:1 0:1 0.5:2 0.5:2 0:1 0:1 0.5:2 0.5:2
II.37.1 | mu chi B | B*mu*(chi + 1) | 0:1
II.38.3 | Y A x d | A*Y*x/d | 0:1 0:1 0:1 0.5:2
II.38.14 | Y sigma | Y/(2*sigma + 2) | 0:1
III.4.32 | hbar omega k_b T | 1/(exp(hbar*omega/(T*k_b)) - 1) | 0.5:1 0.5:1 0.5:2 0.5:2
III.4.33 | hbar omega k_b T | hbar*omega/(exp(hbar*omega/(T*k_b)) - 1) | 0:1 0:1 0.5:2 0.5:2
III.7.38 | mu B hbar | 2*B*mu/hbar | 0:1 0:1 0.5:2
III.8.54 | E t hbar | sin(E*t/hbar)**2 | 0:2pi 0:1 0.5:2
III.9.52 | p_d E_f t hbar omega omega_0 | 4*E_f*p_d*sin(t*(omega - omega_0)/2)**2/(hbar*t*(omega - omega_0)**2) |
    0:1 0:1 0:1 0.5:2 0:pi 0:pi
III.10.19 | mu B_x B_y B_z | mu*sqrt(B_x**2 + B_y**2 + B_z**2) | 0:1
III.12.43 | n hbar | hbar*n | 0:1
III.13.18 | E d k hbar | 2*E*d**2*k/hbar | 0:1 0:1 0:1 0.5:2
III.14.14 | I_0 q V_e k_b T | I_0*(exp(V_e*q/(T*k_b)) - 1) | 0:1 0:1 0:1 0.5:2 0.5:2
III.15.12 | U k d | 2*U*(1 - cos(d*k)) | 0:1 0:2pi 0:1
III.15.14 | hbar E d | hbar**2/(2*E*d**2) | 0:1 0.5:2 0.5:2
III.15.27 | alpha n d | 2*pi*alpha/(d*n) | 0:1 0.5:2 0.5:2
III.17.37 | beta alpha theta | beta*(alpha*cos(theta) + 1) | 0:1 0:1 0:2pi
III.19.51 | m q epsilon hbar n | -m*q**4/(32*pi**2*epsilon**2*hbar**2*n**2) | 0:1 0:1 0.5:2 0.5:2 0.5:2
III.21.20 | rho q A m | -A*q*rho/m | 0:1 0:1 0:1 0.5:2
Rutherford scattering | Z_1 Z_2 alpha hbar c E theta | Z_1**2*Z_2**2*alpha**2*c**2*hbar**2/(16*E**2*sin(theta/2)**4) |
    0:1 0:1 0:1 0:1 0:1 0.5:2 0.1pi:0.9pi
Friedman equation | G rho k_f c a_f | sqrt(8*pi*G*rho/3 - c**2*k_f/a_f**2) | 1:2 1:2 0:1 0:1 1:2
Compton scattering | E m c theta | E/(E*(1 - cos(theta))/(c**2*m) + 1) | 0:1 0.5:2 0.5:2 0:2pi
Radiated gravitational wave power | G c m_1 m_2 r | -6.4*G**4*m_1**2*m_2**2*(m_1 + m_2)/(c**5*r**5) |
    0:1 0.5:2 0:1 0:1 0.5:2
Relativistic aberration | theta_2 v c | acos((cos(theta_2) - v/c)/(1 - v*cos(theta_2)/c)) | 0:pi 0:1 1:2
N-slit diffraction | I_0 alpha delta N | 4*I_0*sin(alpha/2)**2*sin(N*delta/2)**2/(alpha**2*sin(delta/2)**2) |
    0:1 0.1pi:0.9pi 0.1pi:0.9pi 0.5:1
Goldstein 3.16 | m E U L r | sqrt(2)*sqrt((E - L**2/(2*m*r**2) - U)/m) | 1:2 2:3 0:1 0:1 1:2
Goldstein 3.55 | m k_G L E theta_1 theta_2 | k_G*m*(sqrt(2*E*L**2/(k_G**2*m) + 1)*cos(theta_1 - theta_2) + 1)/L**2 |
    0.5:2 0.5:2 0.5:2 0:1 0:2pi 0:2pi
Goldstein 3.64 (ellipse) | d alpha theta_1 theta_2 | d*(1 - alpha**2)/(alpha*cos(theta_1 - theta_2) + 1) |
    0:1 0:0.9 0:2pi 0:2pi
Goldstein 3.74 (Kepler) | d G m_1 m_2 | 2*pi*d**1.5/sqrt(G*(m_1 + m_2)) | 0:1 0.5:2 0.5:2 0.5:2
Goldstein 3.99 | epsilon E L m Z_1 Z_2 q | sqrt(2*E*L**2*epsilon**2/(Z_1**2*Z_2**2*m*q**4) + 1) |
    0:1 0:1 0:1 0.5:2 0.5:2 0.5:2 0.5:2
Goldstein 8.56 | p q A c m V_e | V_e*q + sqrt(c**4*m**2 + c**2*(-A*q + p)**2) | 0:1
Goldstein 12.80 | m p omega x alpha y | (m**2*omega**2*x**2*(alpha*y/x + 1) + p**2)/(2*m) | 0.5:2 0:1 0:1 0:1 0:1 0.5:2
Jackson 2.11 | q epsilon y V_e d | q*(4*pi*V_e*d*epsilon - d*q*y**3/(-d**2 + y**2)**2)/(4*pi*epsilon*y**2) |
    0:1 0.5:2 1:2 0:1 0:1
Jackson 3.45 | q r d alpha | q/sqrt(d**2 - 2*d*r*cos(alpha) + r**2) | 0:1 0:1 0:1 0:2pi
Jackson 4.60 | E_f theta alpha d r | E_f*(d**3*(alpha - 1)/(r**2*(alpha + 2)) - r)*cos(theta) | 0:1 0:2pi 0:2 0:1 0.5:2
Jackson 11.38 (Doppler) | omega v c theta | omega*sqrt(1 - v**2/c**2)/(1 + v*cos(theta)/c) | 0:1 0:1 1:2 0:2pi
Weinberg 15.2.1 | G c k_f a_f H | 3*(H**2 + c**2*k_f/a_f**2)/(8*pi*G) | 0.5:2 0:1 0:1 0.5:2 0:1
Weinberg 15.2.2 | G c k_f a_f H alpha | -(H**2*c**2*(1 - 2*alpha) + c**4*k_f/a_f**2)/(8*pi*G) |
    0.5:2 0:1 0:1 0.5:2 0:1 0:1
Schwarz 13.132 (Klein-Nishina) | alpha hbar m c omega_0 omega theta |
    pi*alpha**2*hbar**2*omega_0**2*(omega/omega_0 - sin(theta)**2 + omega_0/omega)/(c**2*m**2*omega**2) |
    0:1 0:1 0.5:2 0.5:2 0.5:2 0.5:2 0:2pi
"""


def get_feynman_dataset(name: int | str) -> tuple[tuple[Any, ...], Any, Callable[[Tensor], Tensor], list[list[float]]]:
    """Look up an equation of the Feynman Symbolic Regression Database.

    Args:
        name: name of the equation, such as ``"I.6.20"``, or its number from 1 to 120. The name ``"test"`` selects a
            short example.

    Returns:
        A tuple of the variables as sympy symbols, the formula as a sympy expression, the formula as a function from
        inputs ``[N, n_var]`` to values ``[N, 1]``, and the list of the ranges of the variables. The ranges can be
        passed to :func:`create_dataset`.

    Raises:
        TypeError, ValueError: if the name is unknown, or if the number is out of range.

    Example:
        >>> symbols, formula, f, ranges = get_feynman_dataset("I.12.11")
        >>> formula
        q*(B*v*sin(theta) + E_f)
        >>> create_dataset(f, n_var=len(symbols), ranges=ranges)["train_label"].shape
        torch.Size([1000, 1])
    """
    import sympy

    rows = re.sub(r"\n +", " ", EQUATIONS).strip().splitlines()
    table = {row.split(" | ")[0]: row.split(" | ")[1:] for row in rows}
    names, key = list(table), plain(name)
    if isinstance(key, str):
        key = key.replace("Rutherforld", "Rutherford")  # pykan's spelling
        if key not in table:
            near = difflib.get_close_matches(key, names, cutoff=0.4)
            raise ValueError(f"name must be that of an equation, such as {', '.join(map(repr, near or names[1:4]))}, "
                             f"or a number from 1 to {len(names) - 1}; got {name!r}")  # fmt: skip
    elif not isinstance(key, int) or isinstance(key, bool):
        raise TypeError(f"name must be a string or an int, got {type(name).__name__}")
    elif not 1 <= key < len(names):
        raise ValueError(f"name must be from 1 to {len(names) - 1} as a number, got {name}")
    else:
        key = names[key]
    variables, formula, ranges = table[key]
    symbols = tuple(map(sympy.Symbol, variables.split()))
    # The variable "lambda" is renamed, because sympify cannot parse a Python keyword as a name.
    known = {symbol.name.replace("lambda", "lambda_"): symbol for symbol in symbols}
    expression = sympy.sympify(re.sub(r"\blambda\b", "lambda_", formula), locals=known)
    limits = [[_number(end) for end in each.split(":")] for each in ranges.split()]
    return symbols, expression, lambda x: values_of(expression, symbols, x), limits * (len(symbols) // len(limits))


def _number(text: str) -> float:
    return float(text.removesuffix("pi") or 1) * math.pi if text.endswith("pi") else float(text)
